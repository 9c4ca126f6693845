"""One record cleaned: its text tidied, and checked against what a record has to be."""

import re

from herdsman.api.v1alpha1.instruction_set import Cleaning
from herdsman_trainer.instruction_making.control_strings import holds_control_strings, neutralised
from herdsman_trainer.instruction_making.languages import script_percent
from herdsman_trainer.instruction_making.records import AlpacaRecord, Dropped

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # control characters, but tab and line feed
    "\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\uffff"  # marks that nobody sees
    "\U000e0000-\U000e007f]"  # tags, with which text is hidden
)
_LINE_ENDS = re.compile(r"\r\n?|\u2028|\u2029|\x85")
_TRAILING = re.compile(r"[ \t]+(?=\n)")
_NOTHING = frozenset(
    {
        "<noinput>",
        "<no input>",
        "noinput",
        "no input",
        "none",
        "null",
        "nan",
        "n/a",
        "无",
        "无输入",
        "（无）",
        "(无)",
        "空",
    }
)
"""What stands in an input that is none."""


def tidy(text: str) -> str:
    """Return the text with line feeds as its only line ends, and without what nobody sees; tidy text stays as it is."""
    text = _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text))
    return _TRAILING.sub("", text).strip()


class Cleaner:
    """Cleans records by the rules of a spec."""

    def __init__(self, rules: Cleaning, language: str) -> None:
        self._rules = rules
        self._language = language

    def clean(self, record: AlpacaRecord) -> AlpacaRecord | Dropped:
        """Return the record as it stays, or why it does not; a record that stays once stays the same."""
        instruction, given, output = tidy(record.instruction), tidy(record.input), tidy(record.output)
        if given.casefold() in _NOTHING or given == instruction:
            given = ""
        if not _is_text(instruction + given + output):
            return Dropped.NOT_TEXT
        if not instruction:
            return Dropped.NO_INSTRUCTION
        if not output:
            return Dropped.NO_OUTPUT
        if (wrong := self._wrong_length(instruction, given, output)) is not None:
            return wrong
        if not self._is_in_language(f"{instruction}\n{given}\n{output}"):
            return Dropped.WRONG_LANGUAGE
        if any(unwanted in output for unwanted in self._rules.drop_containing):
            return Dropped.UNWANTED
        parts = (instruction, given, output)
        if self._rules.control_strings != "Keep" and any(holds_control_strings(part) for part in parts):
            if self._rules.control_strings == "Drop":
                return Dropped.CONTROL_STRINGS
            instruction, given, output = (neutralised(part) for part in parts)
        return AlpacaRecord(instruction, given, output, record.kind)

    def _wrong_length(self, instruction: str, given: str, output: str) -> Dropped | None:
        rules = self._rules
        if len(instruction) < rules.shortest_instruction or len(output) < rules.shortest_output:
            return Dropped.TOO_SHORT
        longest = (rules.longest_instruction, rules.longest_input, rules.longest_output)
        too_long = any(len(text) > most for text, most in zip((instruction, given, output), longest, strict=True))
        return Dropped.TOO_LONG if too_long else None

    def _is_in_language(self, text: str) -> bool:
        if self._rules.language_percent == 0:
            return True
        percent = script_percent(text, self._language)
        return percent is None or percent >= self._rules.language_percent


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
