"""The datasets of a run are fixed by its first attempt that has tokenised them: later ones find the same, or stop."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from herdsman_trainer.data.datasets import Dataset
from herdsman_trainer.errors import BadInput

PIN = "dataset.json"
_SHOWN = 5


class PinnedFile(NamedTuple):
    """One file of a dataset."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Pin:
    """Every file of every dataset, by the field that names the dataset."""

    datasets: Mapping[str, Sequence[PinnedFile]]


def read_pin(workspace: Path) -> Pin | None:
    """Return what an earlier attempt has fixed, or None."""
    try:
        found = json.loads((workspace / PIN).read_bytes())
        return Pin({each["field"]: [PinnedFile(**file) for file in each["files"]] for each in found["datasets"]})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):  # nobody but us writes it, and in one step
        return None


def pin(workspace: Path, datasets: Sequence[Dataset]) -> None:
    """Fix the datasets; what is fixed already stays."""
    if read_pin(workspace) is not None:
        return
    found = []
    for dataset in datasets:
        sizes = [size for size, _, _ in dataset.stamps]
        files = map(PinnedFile, dataset.names, sizes, dataset.digests)
        found.append({"field": dataset.field, "files": [file._asdict() for file in files]})
    draft = workspace / f".{PIN}.tmp"
    draft.write_text(json.dumps({"datasets": found}, indent=1, ensure_ascii=False), encoding="utf-8")
    draft.replace(workspace / PIN)


def check_unchanged(workspace: Path, dataset: Dataset) -> None:
    """Raise BadInput, naming the files, where a dataset is not what it was when this run began."""
    known = read_pin(workspace)
    files = known.datasets.get(dataset.field, ()) if known is not None else ()
    before = {file.name: file.sha256 for file in files}
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
