"""The data report: what the datasets of a run hold and what became of it, as JSON, for people, and in a few figures."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from herdsman.api.v1alpha1.status import DataFigures
from herdsman_trainer.data.datasets import Dataset

JSON_NAME, MARKDOWN_NAME = "data-report.json", "data-report.md"
_FORMAT = 1


@dataclass(frozen=True)
class DatasetFigures:
    """What one dataset holds, and what became of it; sums are over what is trained and evaluated on."""

    read: int
    """Documents or records that were met."""
    kept: int
    held_out: int
    tokens: int
    characters: int
    truncated: int = 0
    duplicates: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    """What was left out, by reason."""
    blank_lines: int = 0

    @property
    def tokens_per_character(self) -> float | None:
        """How many tokens a character takes; None without characters."""
        return round(self.tokens / self.characters, 4) if self.characters else None

    def to_json(self) -> dict[str, Any]:
        """Return the figures by their names in the report."""
        return {
            "read": self.read,
            "kept": self.kept,
            "heldOut": self.held_out,
            "tokens": self.tokens,
            "characters": self.characters,
            "tokensPerCharacter": self.tokens_per_character,
            "truncated": self.truncated,
            "duplicates": self.duplicates,
            "dropped": {reason: count for reason, count in self.dropped.items() if count},
            "blankLines": self.blank_lines,
        }


@dataclass(frozen=True)
class DataReport:
    """The figures of all datasets of a run."""

    what: Literal["documents", "records"]
    datasets: Sequence[Dataset]
    figures: Sequence[DatasetFigures]
    sequences: Sequence[int]
    """Blocks or samples of each dataset that are trained on."""
    tokenizer: str
    """Its digest."""
    options: Mapping[str, Any]
    """What decided what became of the data."""
    passes: Sequence[float] = ()
    """How often each dataset is gone through in this run."""

    @property
    def total(self) -> DatasetFigures:
        """The sums over all datasets."""
        counts = ("read", "kept", "held_out", "tokens", "characters", "truncated", "duplicates", "blank_lines")
        reasons = dict.fromkeys(reason for each in self.figures for reason in each.dropped)
        return DatasetFigures(
            **{name: sum(getattr(each, name) for each in self.figures) for name in counts},
            dropped={reason: sum(each.dropped.get(reason, 0) for each in self.figures) for reason in reasons},
        )

    def headline(self) -> DataFigures:
        """Return what the status says."""
        total = self.total
        ratio = total.tokens_per_character
        return DataFigures(
            documents=total.kept,
            held_out=total.held_out,
            tokens=total.tokens,
            characters=total.characters,
            tokens_per_character="" if ratio is None else f"{ratio:g}",
            truncated=total.truncated,
            dropped=sum(total.dropped.values()),
            duplicates=total.duplicates,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the whole report; it names no path of this machine, so the same data give the same report."""
        datasets = []
        weights = [dataset.weight for dataset in self.datasets]
        for place, (dataset, figures) in enumerate(zip(self.datasets, self.figures, strict=True)):
            shares = {"weight": weights[place]} if weights[place] is not None else {}
            passes = {"passes": round(self.passes[place], 3)} if self.passes else {}
            sizes = [size for size, _, _ in dataset.stamps]
            files = zip(dataset.names, sizes, dataset.digests, strict=True)
            datasets.append(
                {
                    "field": dataset.field,
                    "dataset": dataset.label,
                    **shares,
                    **figures.to_json(),
                    "sequences": self.sequences[place],
                    **passes,
                    "files": [{"name": name, "bytes": size, "sha256": digest} for name, size, digest in files],
                }
            )
        return {
            "format": _FORMAT,
            "kind": self.what,
            "tokenizerDigest": self.tokenizer,
            "options": dict(self.options),
            "total": self.total.to_json(),
            "datasets": datasets,
        }

    def to_markdown(self) -> str:
        """Return the report as a page."""
        titles = ["dataset", "read", "kept", "held out", "tokens", "tokens/char.", "truncated", "dropped", "duplicates"]
        titles += ["weight"] if any(dataset.weight is not None for dataset in self.datasets) else []
        titles += ["passes"] if self.passes else []
        rows = []
        for place, (dataset, figures) in enumerate(zip(self.datasets, self.figures, strict=True)):
            more = [str(dataset.weight)] if "weight" in titles else []
            more += [f"{self.passes[place]:.2f}"] if self.passes else []
            rows.append([_cell(dataset.label), *_cells(figures), *more])
        if len(rows) > 1:
            rows.append(["**all**", *_cells(self.total), *[""] * (len(titles) - 9)])
        lines = [f"# Data: {self.what}", "", _row(titles), _row(["---", *["---:"] * (len(titles) - 1)])]
        lines += [_row(row) for row in rows]
        reasons = {reason: count for reason, count in self.total.dropped.items() if count}
        if reasons:
            lines += ["", "Dropped: " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.items()) + "."]
        settings = ", ".join(f"{name} {value}" for name, value in self.options.items() if value is not None)
        lines += ["", f"Made with {settings}; the tokenizer is {self.tokenizer[:16]}…", ""]
        lines += [_row(["file", "bytes", "SHA-256"]), _row(["---", "---:", "---"])]
        for dataset in self.datasets:
            for name, (size, _, _), digest in zip(dataset.names, dataset.stamps, dataset.digests, strict=True):
                lines.append(_row([_cell(name), f"{size:,}", f"`{digest}`"]))
        return "\n".join(lines) + "\n"


def write_report(report: DataReport, directory: Path) -> None:
    """Write the report into a directory, each file in one step."""
    _replace(directory / JSON_NAME, json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n")
    _replace(directory / MARKDOWN_NAME, report.to_markdown())


def copy_report(source: Path, target: Path) -> None:
    """Copy the report of a run's workspace, where there is one, into its artifact."""
    for name in (JSON_NAME, MARKDOWN_NAME):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.tmp")
    with draft.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(path)


def _cells(figures: DatasetFigures) -> list[str]:
    ratio = figures.tokens_per_character
    counts = (figures.truncated, sum(figures.dropped.values()), figures.duplicates)
    return [
        *(f"{count:,}" for count in (figures.read, figures.kept, figures.held_out, figures.tokens)),
        "" if ratio is None else f"{ratio:g}",
        *(f"{count:,}" for count in counts),
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
