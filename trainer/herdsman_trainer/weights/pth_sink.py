"""Writes Meta's form of a model: consolidated.*.pth, its matrices split over the files as Meta's are.

Projections into the heads and the feed-forward layer are split by rows, those out of them by columns; norms lie in
every file. Rows of the query and key projections are interleaved for Meta's rotary embedding.
"""

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.draft_files import DraftFiles
from herdsman_trainer.weights.merge import EMBEDDING, HEAD
from herdsman_trainer.weights.meta_model import GLOBAL_NAMES, LAYER_NAMES
from herdsman_trainer.weights.meta_shapes import BY_COLUMNS
from herdsman_trainer.weights.meta_writing import FIELD, default_shards, embedding_by_rows, params
from herdsman_trainer.weights.pth_layout import PthLayout, pth_layout
from herdsman_trainer.weights.tensor_spec import TensorSpec, shape_text, tensor_bytes

DIRECTORY = "pth"
META_GLOBAL = {name: meta for meta, name in GLOBAL_NAMES.items()}
META_LAYER = {name: meta for meta, name in LAYER_NAMES.items()}


class PthSink:
    """A sink (sinks.Sink) for Meta's form: one or several files, written side by side."""

    exact = False

    def __init__(
        self, files: DraftFiles, specs: Sequence[TensorSpec], config: Mapping[str, Any], shards: int | None = None
    ) -> None:
        """Lay out the files of a model with this config.json; as many as Meta publishes unless `shards` says otherwise.

        Raises BadInput where the form cannot hold the model, or it cannot be split into so many files.
        """
        self.files = files
        self.params = params(config)
        self._count = shards or default_shards(self.params["dim"])
        self._turned = self.params["dim"] // self.params["n_heads"]
        self._columns = (*BY_COLUMNS, *(() if embedding_by_rows(config) else (EMBEDDING,)))
        self._number = {spec.name: number for number, spec in enumerate(specs)}
        shared = {} if HEAD in self._number else {META_GLOBAL[HEAD]: META_GLOBAL[EMBEDDING]}
        if shared and self._count > 1:
            message = f"The head is the embedding, and {self._count} files would split the two in different ways."
            raise BadInput(message, file=FIELD, hint=f"Set {FIELD}.shards to 1.")
        self._parts = {spec.name: self._split(spec) for spec in specs}
        self._layouts: list[PthLayout] = [
            pth_layout({meta_name(spec.name): (spec.dtype, self._shape(spec, part)) for spec in specs}, shared)
            for part in range(self._count)
        ]
        self._names = [f"{DIRECTORY}/consolidated.{part:02d}.pth" for part in range(self._count)]

    @property
    def nbytes(self) -> int:
        """The size of the files."""
        return sum(layout.nbytes for layout in self._layouts)

    def row_multiple(self, spec: TensorSpec) -> int:
        """Return the rows of one head for what the rotary embedding turns, else 1."""
        return self._turned if _is_turned(spec.name) else 1

    def begin(self, spec: TensorSpec) -> None:
        """Start a tensor; the first one begins the files."""
        self._spec, self._row = spec, 0
        self._check_sums = [0] * self._count
        for name, layout in zip(self._names, self._layouts, strict=True):
            if not (file := self.files.open(name)).position:
                file.write(layout.head)

    def write(self, block: torch.Tensor) -> None:
        """Write the next rows into the files they belong to."""
        if _is_turned(self._spec.name):
            block = interleaved(block, self._turned)
        first, self._row = self._row, self._row + (len(block) if block.dim() else 1)
        for part, name in enumerate(self._names):
            piece = self._piece(block, first, part)
            if piece.numel():
                values = tensor_bytes(piece)
                self._check_sums[part] = zlib.crc32(values, self._check_sums[part])
                self.files.open(name).write(values)

    def end(self) -> None:
        """Write the check sum, and what stands before the next tensor."""
        number = self._number[self._spec.name]
        for name, layout, check_sum in zip(self._names, self._layouts, self._check_sums, strict=True):
            file = self.files.open(name)
            expected = layout.position(number) + layout.sizes[number]
            if file.position != expected:
                raise ValueError(f"{self._spec.name} ends at {file.position} in {name}, not at {expected}")
            file.write(layout.after(number, check_sum))

    def finish(self) -> None:
        """Write the directories of the files, with the check sums that stand after the tensors."""
        for name, layout in zip(self._names, self._layouts, strict=True):
            file = self.files.open(name)
            file.flush()
            with file.path.open("rb") as stream:
                check_sums = []
                for number, size in enumerate(layout.sizes):
                    stream.seek(layout.position(number) + size + 4)
                    check_sums.append(struct.unpack("<I", stream.read(4))[0])
            file.write(layout.tail(check_sums))

    def _split(self, spec: TensorSpec) -> list[tuple[int, int]] | None:
        """Return the rows or columns of each file, None where every file has all of them."""
        if len(spec.shape) < 2:
            return None
        size = spec.shape[1 if spec.name.endswith(self._columns) else 0]
        each = size // self._count
        # The vocabulary alone need not be a multiple: the last file takes what is left (49,953 rows over two files).
        whole = each * self._count == size or spec.name == HEAD
        if not whole or (_is_turned(spec.name) and each % self._turned):
            what = "heads" if _is_turned(spec.name) else shape_text(spec.shape)
            message = f"{spec.name} ({what}) cannot be split over {self._count} files."
            raise BadInput(message, file=FIELD, hint=f"Set {FIELD}.shards to 1, or leave it out.")
        return [(part * each, size if part + 1 == self._count else (part + 1) * each) for part in range(self._count)]

    def _shape(self, spec: TensorSpec, part: int) -> tuple[int, ...]:
        span = self._parts[spec.name]
        if span is None:
            return spec.shape
        size = span[part][1] - span[part][0]
        return (spec.shape[0], size) if spec.name.endswith(self._columns) else (size, *spec.shape[1:])

    def _piece(self, block: torch.Tensor, first: int, part: int) -> torch.Tensor:
        """Return what a file has of the rows from `first` on."""
        span = self._parts[self._spec.name]
        if span is None:
            return block
        low, high = span[part]
        if self._spec.name.endswith(self._columns):
            return block[:, low:high]
        return block[max(low - first, 0) : max(high - first, 0)]


def meta_name(name: str) -> str:
    """Return Meta's name of a Hugging Face tensor; raises BadInput where it has none."""
    if name in META_GLOBAL:
        return META_GLOBAL[name]
    match name.split("."):
        case ["model", "layers", layer, *inner, "weight"] if (part := ".".join(inner)) in META_LAYER:
            return f"layers.{layer}.{META_LAYER[part]}.weight"
    hint = f"Leave {FIELD} out, and write the form huggingface."
    raise BadInput(f"The model has a tensor {name}, for which Meta's form has no name.", file=FIELD, hint=hint)


def interleaved(rows: torch.Tensor, head: int) -> torch.Tensor:
    """Reorder whole heads: rows i and i + head/2 become rows 2i and 2i + 1, which Meta turns together."""
    return rows.reshape(-1, 2, head // 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def _is_turned(name: str) -> bool:
    return name.endswith(("q_proj.weight", "k_proj.weight"))
