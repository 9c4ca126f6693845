"""The datasets of a run as they lie here: their files, and the digests of these."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herdsman_trainer.content_cache import file_sha256
from herdsman_trainer.data.cpus import usable_cpus
from herdsman_trainer.errors import BadInput
from herdsman_trainer.text_files import file_stamps, relative_name

Stamps = Sequence[tuple[int, int, int]]


@dataclass(frozen=True)
class Dataset:
    """One dataset: what it is called, and its files by name in the order in which they are read."""

    field: str
    """Where the spec names it: spec.dataset, or spec.datasets[1]."""
    label: str
    """What it is, for people: volume corpora, path zh."""
    source: Path
    """The directory, or the file."""
    files: tuple[Path, ...]
    digests: tuple[str, ...]
    """The SHA-256 of each file."""
    stamps: Stamps
    """Taken before the digests, to notice a change."""
    weight: int | None = None

    @property
    def names(self) -> list[str]:
        """The name of each file, relative to the dataset."""
        return [relative_name(path, self.source) for path in self.files]

    @property
    def contents(self) -> list[tuple[str, str]]:
        """(name, SHA-256) of each file, by name: what the dataset is, wherever it lies."""
        return sorted(zip(self.names, self.digests, strict=True))

    def changed(self) -> bool:
        """Whether a file was changed, replaced or removed since its digest was taken."""
        try:
            return list(file_stamps(self.files)) != list(self.stamps)
        except FileNotFoundError:
            return True


def dataset_at(
    source: Path,
    find: Callable[[Path], Sequence[Path]],
    *,
    field: str = "spec.dataset",
    label: str | None = None,
    weight: int | None = None,
) -> Dataset:
    """Return the dataset of a directory or file, every byte of which is read for its digest; BadInput for no files."""
    files = tuple(find(source))
    stamps = file_stamps(files)
    with ThreadPoolExecutor(usable_cpus(), thread_name_prefix="digests") as executor:  # digests leave the interpreter
        digests = tuple(executor.map(file_sha256, files))
    return Dataset(field, label or str(source), source, files, digests, stamps, weight)


def check_digests(dataset: Dataset, expected: dict[str, str]) -> None:
    """Raise BadInput (ChecksumMismatch) for a file that is missing, or is not what the spec says of it."""
    known: dict[str, Any] = dict(dataset.contents)
    for name, digest in sorted(expected.items()):
        if name not in known:
            hint = f"Correct the name in {dataset.field}.sha256; names are relative to the dataset."
            message = f"{dataset.field}.sha256 names {name}, which is not among the files that are read."
            raise BadInput(message, file=str(dataset.source), hint=hint)
        if known[name] != digest:
            raise BadInput(
                f"{name} has the SHA-256 {known[name]} and {digest} is expected.",
                reason="ChecksumMismatch",
                file=str(dataset.source / name if dataset.source.is_dir() else dataset.source),
                hint="It was changed: correct the digest if the new file is meant, or copy the right one again.",
            )
