"""What became of everything: the figures of the status, and the whole report beside the records."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from herdsman.api.v1alpha1.generation import Generation
from herdsman_trainer.instruction_making.generation import Generated
from herdsman_trainer.instruction_making.records import AlpacaRecord, Dropped

REPORT_FILE = "report.yaml"
"""Not *.json: a training that is given the whole artifact would take it for records."""


@dataclass
class Lengths:
    """A histogram of lengths in characters: how many are below 1, 2, 4, 8 and so on."""

    counts: Counter[int] = field(default_factory=Counter)
    total: int = 0
    number: int = 0

    def add(self, length: int) -> None:
        """Count a length."""
        self.counts[length.bit_length()] += 1
        self.total += length
        self.number += 1

    def document(self) -> dict[str, Any]:
        """Return it for the report: names such as 16-31, with their numbers."""
        bars = {_bar(bits): self.counts[bits] for bits in sorted(self.counts)}
        return {"mean": round(self.total / max(1, self.number), 1), "characters": bars}


@dataclass
class SetReport:
    """The figures of a finished set."""

    read: int
    dropped: Mapping[Dropped, int]
    parts: Sequence[tuple[str, int, int]]
    """Of each source: its field, the records that stayed, and those that are in the set."""
    generation: Generation | None = None
    generated: Generated | None = None
    training: int = 0
    held_out: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict)
    lengths: Mapping[str, Lengths] = field(
        default_factory=lambda: {name: Lengths() for name in ("instruction", "input", "output")}
    )

    def count(self, record: AlpacaRecord, *, held_out: bool) -> None:
        """Count a record that is in the set."""
        if held_out:
            self.held_out += 1
        else:
            self.training += 1
        for name, lengths in self.lengths.items():
            lengths.add(len(getattr(record, name)))

    def figures(self) -> dict[str, float | str]:
        """Return the figures of the status, the telling ones first."""
        found: dict[str, float | str] = {"records": self.training + self.held_out}
        if self.held_out:
            found["heldout_records"] = self.held_out
        found |= {"records_read": self.read, "records_dropped": sum(self.dropped.values())}
        if self.generated is not None and self.generation is not None:
            found["records_generated"] = self.generated.kept
            found |= self.generated.figures(self.generation)
            found |= {"replies_unreadable": self.generated.unreadable} if self.generated.unreadable else {}
        found |= {f"dropped_{reason.value}": self.dropped[reason] for reason in Dropped if self.dropped.get(reason)}
        found |= {f"mean_{name}_characters": lengths.document()["mean"] for name, lengths in self.lengths.items()}
        ordered = sorted(self.kinds.items(), key=lambda item: (-item[1], item[0]))
        return found | {f"kind {name}": number for name, number in ordered}

    def document(self) -> bytes:
        """Return the whole report as YAML."""
        content: dict[str, Any] = {
            "records": {"train": self.training, "heldout": self.held_out, "read": self.read},
            "dropped": {reason.value: self.dropped[reason] for reason in Dropped if self.dropped.get(reason)},
            "sources": [{"field": name, "kept": kept, "inTheSet": chosen} for name, kept, chosen in self.parts],
            "kinds": dict(sorted(self.kinds.items(), key=lambda item: (-item[1], item[0]))),
            "lengths": {name: lengths.document() for name, lengths in self.lengths.items()},
        }
        if (made := self.generated) is not None and self.generation is not None:
            content["generated"] = {
                "wanted": made.wanted,
                "kept": made.kept,
                **({"endedBy": made.ended_by} if made.ended_by is not None else {}),
                "requests": made.usage.requests,
                "promptTokens": made.usage.prompt_tokens,
                "replyTokens": made.usage.reply_tokens,
                **({"cost": made.figures(self.generation)["cost"]} if self.generation.price is not None else {}),
                "replies": {
                    "unreadable": made.unreadable,
                    "repaired": made.repaired,
                    "filtered": made.filtered,
                    "givenUp": made.given_up,
                },
            }
        text: str = yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=120)
        return text.encode()


def _bar(bits: int) -> str:
    return "0" if bits == 0 else "1" if bits == 1 else f"{1 << (bits - 1)}-{(1 << bits) - 1}"
