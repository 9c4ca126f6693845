"""A record in the Alpaca schema, and the reasons for which one is left out."""

import json
from enum import StrEnum
from typing import NamedTuple


class AlpacaRecord(NamedTuple):
    """An instruction, the material it is about (or nothing), and the answer."""

    instruction: str
    input: str
    output: str
    kind: str = ""
    """The kind of task, where whoever wrote the record said it; it is counted, and is no part of the record."""

    def to_line(self) -> bytes:
        """Return the record as a line of JSON, with its line feed."""
        members = {"instruction": self.instruction, "input": self.input, "output": self.output}
        return json.dumps(members, ensure_ascii=False).encode() + b"\n"


class Dropped(StrEnum):
    """Why a record is not in the set."""

    UNKNOWN_FORM = "unknown_form"
    """It has not the keys of any known form, or values that are no text."""
    UNKNOWN_ROLE = "unknown_role"
    """A conversation in which somebody else speaks than a user, an assistant and a system prompt."""
    NO_INSTRUCTION = "no_instruction"
    """The instruction is missing or blank."""
    NO_OUTPUT = "no_output"
    """The answer is missing or blank."""
    NOT_TEXT = "not_text"
    """Half of a surrogate pair, which no UTF-8 file can hold."""
    TOO_SHORT = "too_short"
    """An instruction or an output below clean.shortest."""
    TOO_LONG = "too_long"
    """An instruction, an input or an output above clean.longest."""
    WRONG_LANGUAGE = "wrong_language"
    """Too little of it is written in the script of spec.language."""
    CONTROL_STRINGS = "control_strings"
    """It holds control strings, and clean.controlStrings is Drop."""
    UNWANTED = "unwanted"
    """Its output holds a string of clean.dropContaining."""
    DUPLICATE = "duplicate"
    """The same as an earlier one, but for blanks and punctuation."""
    NEAR_DUPLICATE = "near_duplicate"
    """Almost the same as an earlier one (MinHash)."""
    SIMILAR_INSTRUCTION = "similar_instruction"
    """The instruction is almost that of an earlier one (ROUGE-L)."""
    CUT_OFF = "cut_off"
    """The last record of a reply that came to its end in the middle."""
