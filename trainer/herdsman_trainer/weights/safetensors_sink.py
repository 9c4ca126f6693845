"""Writes the Hugging Face form of a model: safetensors shards with their index, from one pass over the tensors."""

import json
from collections.abc import Sequence

import torch

from herdsman_trainer.weights.draft_files import DraftFiles
from herdsman_trainer.weights.reading import INDEX_FILE
from herdsman_trainer.weights.tensor_spec import TensorSpec, tensor_bytes
from herdsman_trainer.weights.writing import MAX_SHARD_BYTES, file_order, plan_shards, safetensors_head, shard_names

Shards = Sequence[Sequence[TensorSpec]]
"""The tensors of each file, in the order in which they lie in it."""


def lay_out(specs: Sequence[TensorSpec], max_shard_bytes: int = MAX_SHARD_BYTES) -> Shards:
    """Distribute tensors over files."""
    return [file_order(shard) for shard in plan_shards(specs, max_shard_bytes)]


class SafetensorsSink:
    """A sink (sinks.Sink) for the Hugging Face form; tensors come in the order of the shards."""

    exact = False

    def __init__(self, files: DraftFiles, shards: Shards) -> None:
        self.files = files
        self._shards = dict(zip(shard_names(len(shards)), shards, strict=True))
        self._shard_of = {spec.name: name for name, shard in self._shards.items() for spec in shard}

    @property
    def nbytes(self) -> int:
        """The size of the weights."""
        return sum(spec.nbytes for shard in self._shards.values() for spec in shard)

    def row_multiple(self, spec: TensorSpec) -> int:  # noqa: ARG002 - no tensor is special here
        """Return 1: rows are stored one by one."""
        return 1

    def begin(self, spec: TensorSpec) -> None:
        """Go to the tensor's shard, which the first tensor in it begins."""
        name = self._shard_of[spec.name]
        self._file = self.files.open(name)
        if not self._file.position:
            self._file.write(safetensors_head(self._shards[name]))

    def write(self, block: torch.Tensor) -> None:
        """Append rows."""
        self._file.write(tensor_bytes(block))

    def end(self) -> None:
        """Do nothing: tensors lie side by side."""

    def finish(self) -> None:
        """Write the index where there are several shards."""
        if len(self._shards) == 1:
            return
        index = {"metadata": {"total_size": self.nbytes}, "weight_map": self._shard_of}
        self.files.open(INDEX_FILE).write(json.dumps(index, indent=2).encode())
