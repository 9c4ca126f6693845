"""Records of other forms become records in the Alpaca schema."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from herdsman.api.job_config import RecordSource
from herdsman.api.v1alpha1.instruction_set import Columns, Conversations
from herdsman_trainer.instruction_making.records import AlpacaRecord, Dropped

INSTRUCTION = ("instruction", "prompt", "question", "query")
INPUT = ("input", "context")
OUTPUT = ("output", "response", "answer", "completion")
"""What the columns are called unless the spec says it; the first that is there counts."""
_USER, _ASSISTANT, _SYSTEM = "user", "assistant", "system"
_ROLES: Mapping[str, str] = {
    **dict.fromkeys(("user", "human", "prompter"), _USER),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), _ASSISTANT),
    **dict.fromkeys(("system", "developer"), _SYSTEM),
}
_SPEAKERS = {_USER: "User", _ASSISTANT: "Assistant"}


class Turn(NamedTuple):
    """What one side says."""

    role: str
    text: str


def is_known(value: Mapping[str, Any], source: RecordSource) -> bool:
    """Whether a record has the keys of the source's form, or of any form where that is to be seen."""
    form = _form(value, source)
    if form == "Alpaca":
        return _named(value, source.columns.instruction, INSTRUCTION) is not None
    return _conversation(value, form) is not None


def convert(value: Mapping[str, Any], source: RecordSource) -> list[AlpacaRecord] | Dropped:
    """Return what a record becomes, several records where every turn is one; or why it becomes none."""
    form = _form(value, source)
    if form == "Alpaca":
        return _alpaca(value, source.columns)
    entries = _conversation(value, form)
    if entries is None:
        return Dropped.UNKNOWN_FORM
    turns = _turns(entries)
    if isinstance(turns, Dropped):
        return turns
    system = next((turn.text for turn in turns if turn.role == _SYSTEM), "") or _text(value.get("system")) or ""
    pairs = _pairs(turn for turn in turns if turn.role != _SYSTEM)
    if not pairs:
        return Dropped.NO_OUTPUT
    return _chosen(pairs, source.conversations, system if source.keep_system_prompts else "")


def _form(value: Mapping[str, Any], source: RecordSource) -> str:
    if source.format != "Auto":
        return source.format
    if isinstance(value.get("messages"), list):
        return "Messages"
    return "ShareGPT" if isinstance(value.get("conversations", value.get("conversation")), list) else "Alpaca"


def _alpaca(value: Mapping[str, Any], columns: Columns) -> list[AlpacaRecord] | Dropped:
    found = []
    for given, usual in ((columns.instruction, INSTRUCTION), (columns.input, INPUT), (columns.output, OUTPUT)):
        name = _named(value, given, usual)
        text = _text(value[name]) if name is not None else ""
        if text is None:
            return Dropped.UNKNOWN_FORM
        found.append(text)
    instruction, material, output = found
    return [AlpacaRecord(instruction, material, output)]


def _named(value: Mapping[str, Any], given: str | None, usual: Sequence[str]) -> str | None:
    names = (given,) if given is not None else usual
    return next((name for name in names if name in value), None)


def _conversation(value: Mapping[str, Any], form: str) -> Sequence[Any] | None:
    names = ("messages",) if form == "Messages" else ("conversations", "conversation")
    return next((value[name] for name in names if isinstance(value.get(name), Sequence)), None)


def _turns(entries: Sequence[Any]) -> list[Turn] | Dropped:
    """Return the turns of either form; two in a row of one side are one."""
    turns: list[Turn] = []
    for entry in entries:
        if not isinstance(entry, Mapping):
            return Dropped.UNKNOWN_FORM
        said = entry.get("from", entry.get("role"))
        role = _ROLES.get(said.lower()) if isinstance(said, str) else None
        if role is None:
            return Dropped.UNKNOWN_ROLE
        text = _text(entry.get("value", entry.get("content")))
        if text is None:
            return Dropped.UNKNOWN_FORM
        if turns and turns[-1].role == role:
            turns[-1] = Turn(role, f"{turns[-1].text}\n{text}")
        else:
            turns.append(Turn(role, text))
    return turns


def _text(value: Any) -> str | None:
    """Return a value as text: a string, a number, nothing, or parts of which all are text; None for others."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, Sequence) and value and all(_is_text_part(part) for part in value):
        return "".join(part["text"] for part in value)
    return None


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _pairs(turns: Iterable[Turn]) -> list[tuple[str, str]]:
    """Return the questions with their answers; an answer without a question before it is none."""
    pairs: list[tuple[str, str]] = []
    asked: str | None = None
    for turn in turns:
        if turn.role == _USER:
            asked = turn.text
        elif asked is not None:
            pairs.append((asked, turn.text))
            asked = None
    return pairs


def _chosen(pairs: Sequence[tuple[str, str]], policy: Conversations, system: str) -> list[AlpacaRecord]:
    def record(question: str, answer: str, before: str = "") -> AlpacaRecord:
        return AlpacaRecord(f"{system}\n\n{question}" if system.strip() else question, before, answer)

    if policy == "FirstTurn":
        return [record(*pairs[0])]
    if policy == "EachTurn":
        return [record(*pair) for pair in pairs]
    *earlier, (question, answer) = pairs
    said = [turn for pair in earlier for turn in zip((_USER, _ASSISTANT), pair, strict=True)]
    return [record(question, answer, "\n".join(f"{_SPEAKERS[role]}: {text}" for role, text in said))]
