"""Records of a reply: JSON as it should be, or what can be read out of something like it."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from json_repair import repair_json

from herdsman_trainer.instruction_making.records import AlpacaRecord, Dropped

LONGEST_BROKEN = 60_000
"""Characters of a reply that is no JSON as it stands, which is cut there: repairing takes seconds beyond."""
_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)
_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("instruction", "指令", "任务指令", "task", "任务", "question", "问题"), "instruction"),
    **dict.fromkeys(("input", "输入", "材料", "context"), "input"),
    **dict.fromkeys(("output", "输出", "答案", "回答", "answer", "response"), "output"),
    **dict.fromkeys(("kind", "type", "类型", "任务类型", "category"), "kind"),
}
"""What models call the members, without what they put around it."""
_AROUND = "<>「」【】\"' \t:："
_BRACKET = re.compile(r"[\[{]")
_DEEPEST = 6


@dataclass(frozen=True)
class Readable:
    """What a reply holds."""

    records: list[AlpacaRecord | Dropped] = field(default_factory=list)
    repaired: bool = False
    """Whether it was no JSON as it stood."""

    @property
    def is_empty(self) -> bool:
        """Whether there is not one record in it."""
        return not any(isinstance(record, AlpacaRecord) for record in self.records)


def read_reply(text: str, *, cut: bool) -> Readable:
    """Return the records of a reply in their order; `cut` says that it came to its end in the middle of something."""
    value, repaired = _json_of(text)
    records: list[AlpacaRecord | Dropped] = [_record(found) for found in _objects(value)]
    if records and (cut or (repaired and len(text) > LONGEST_BROKEN)):
        records[-1] = Dropped.CUT_OFF
    return Readable(records, repaired)


def _json_of(text: str) -> tuple[Any, bool]:
    text = _THOUGHTS.sub("", text).strip().removeprefix("\ufeff")
    try:
        return json.loads(text), False
    except (ValueError, RecursionError):
        text = text[:LONGEST_BROKEN]
    fenced = _FENCE.search(text)
    text = fenced[1] if fenced is not None else text
    if (values := _one_by_one(text)) is not None:
        return values, True
    try:
        return repair_json(text, return_objects=True), True
    except (ValueError, RecursionError, TypeError, IndexError):
        return None, True


def _one_by_one(text: str) -> list[Any] | None:
    """Return the values that stand one behind the other with anything in between; None where one is malformed."""
    decoder, values = json.JSONDecoder(), []
    at = _BRACKET.search(text)
    while at is not None:
        try:
            value, end = decoder.raw_decode(text, at.start())
        except (ValueError, RecursionError):
            return None
        values.append(value)
        at = _BRACKET.search(text, end)
    return values


def _objects(value: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield the objects that look like records, wherever they lie: in a list, below any key, or one by one."""
    if depth > _DEEPEST:
        return
    if isinstance(value, Mapping):
        if {_name(key) for key in value} & {"instruction", "output"}:
            yield value
            return
        value = list(value.values())
    if isinstance(value, list):
        for member in value:
            if isinstance(member, Mapping | list):
                yield from _objects(member, depth + 1)


def _record(value: Mapping[str, Any]) -> AlpacaRecord | Dropped:
    found = {"instruction": "", "input": "", "output": "", "kind": ""}
    for key, member in value.items():
        name = _name(key)
        if name is None or found[name]:
            continue
        if member is None:
            continue
        if isinstance(member, int | float) and not isinstance(member, bool):
            member = str(member)
        if not isinstance(member, str):
            return Dropped.UNKNOWN_FORM
        found[name] = member
    return AlpacaRecord(found["instruction"], found["input"], found["output"], found["kind"].strip()[:40])


def _name(key: Any) -> str | None:
    return _NAMES.get(key.strip(_AROUND).casefold()) if isinstance(key, str) else None
