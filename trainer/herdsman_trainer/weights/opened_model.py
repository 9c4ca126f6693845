"""A model in any form that ModelImport knows: opened and checked, before anything large is read or written."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from herdsman.api.job_config import FileDigest
from herdsman_trainer.tokenizers import TextTokenizer
from herdsman_trainer.weights.model_writing import Announce, Figures
from herdsman_trainer.weights.published import Form
from herdsman_trainer.weights.tensor_spec import TensorSpec

Digests = Mapping[str, FileDigest]


@dataclass(frozen=True)
class OpenedModel:
    """What is known from names, shapes and configuration alone."""

    where: Path
    weights: Sequence[Path]
    """The files that hold the weights."""
    others: Sequence[Path]
    """Further files that the result follows from: configuration and tokenizer."""
    specs: Sequence[TensorSpec]
    """Of the result."""
    vocab_size: int
    """Rows of the embedding."""
    dtype: torch.dtype
    write_tokenizer: Callable[[Path], None]
    """Writes the tokenizer's files into an empty directory."""
    write: Callable[[Path, TextTokenizer, Announce], Digests]
    """Writes weights and configuration beside them; returns the digests it took on the way."""
    figures: Figures
    copies: bool = False
    """Whether the weights are copied byte for byte, so that their digests come out of the writing."""
    tokenizer_from: Path | None = None
    """Where the tokenizer lies; None: with the weights."""
    form: Form | None = None
    """The form in the table of published files."""
    size: tuple[int, int] = (0, 0)
    """Hidden size and number of layers."""

    @property
    def bytes(self) -> int:
        """Size of the result's weights."""
        return sum(spec.nbytes for spec in self.specs)

    def named_files(self, directory: Path) -> dict[str, Path]:
        """Return all files that the result follows from, by path relative to a directory: weights first."""
        return {os.path.relpath(path, directory): path for path in (*self.weights, *self.others)}


def announced_blocks(
    blocks: Callable[[TensorSpec], Iterable[torch.Tensor]], specs: Iterable[TensorSpec], announce: Announce
) -> Callable[[TensorSpec], Iterable[torch.Tensor]]:
    """Return the blocks with an announcement before each, by bytes, `specs` being all that will be asked for."""
    total = max(1, sum(spec.nbytes for spec in specs))
    written = 0

    def with_announcements(spec: TensorSpec) -> Iterator[torch.Tensor]:
        nonlocal written
        for block in blocks(spec):
            announce(f"writing {spec.name}", written / total)
            yield block
            written += block.nbytes

    return with_announcements
