"""The datasets of a run are fixed by its first attempt that has tokenised them: later ones find the same, or stop."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from herdsman_trainer.data.datasets import Dataset
from herdsman_trainer.errors import BadInput

PIN = "dataset.json"
_SHOWN = 5
Contents = list[tuple[str, str]]


@dataclass(frozen=True)
class Pin:
    """(name, SHA-256) of every file, for each dataset in the order of the spec."""

    datasets: tuple[tuple[str, Contents], ...]

    def of(self, field: str) -> Contents | None:
        """Return what the dataset that this field names held; None where there was none."""
        return dict(self.datasets).get(field)


def read_pin(workspace: Path) -> Pin | None:
    """Return what an earlier attempt has fixed, or None."""
    try:
        found = json.loads((workspace / PIN).read_bytes())
        return Pin(tuple((each["field"], [(name, sha) for name, sha in each["files"]]) for each in found["datasets"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):  # nobody but us writes it, and in one step
        return None


def pin(workspace: Path, datasets: Sequence[Dataset]) -> None:
    """Fix the datasets; what is fixed already stays."""
    if read_pin(workspace) is not None:
        return
    found = [{"field": dataset.field, "files": dataset.contents} for dataset in datasets]
    draft = workspace / f".{PIN}.tmp"
    draft.write_text(json.dumps({"datasets": found}, indent=1, ensure_ascii=False), encoding="utf-8")
    draft.replace(workspace / PIN)


def check_unchanged(workspace: Path, dataset: Dataset) -> None:
    """Raise BadInput, naming the files, where a dataset is not what it was when this run began."""
    known = read_pin(workspace)
    before = dict(known.of(dataset.field) or []) if known is not None else {}
    now = dict(dataset.contents)
    if known is None or before == now:
        return
    changed = [f"{name} was changed" for name in sorted(before.keys() & now.keys()) if before[name] != now[name]]
    changed += [f"{name} is gone" for name in sorted(before.keys() - now.keys())]
    changed += [f"{name} is new" for name in sorted(now.keys() - before.keys())]
    more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    raise BadInput(
        f"{dataset.field} is not what it was when this run began: {', '.join(changed[:_SHOWN])}{more}.",
        reason="ChecksumMismatch",
        file=str(dataset.source),
        hint="A run trains on the same data to its last step: put the files back, or make a new resource for others.",
    )
