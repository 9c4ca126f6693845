"""Writes GGUF files while the one pass over a merged model goes on: the header first, then tensor after tensor.

The layout is llama.cpp's: rows of query and key projections are interleaved within each head for its rotary embedding.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy
import torch
from gguf import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFWriter
from gguf.gguf_writer import WriterState

from herdsman.api.v1alpha1.lora_merge import GgufOutput
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.weights.draft_files import DraftFile, DraftFiles
from herdsman_trainer.weights.gguf_metadata import ROPE_FACTORS, GgufDescription, describe, rope_factors
from herdsman_trainer.weights.gguf_quantisation import Importance, check_library, check_values, quantise
from herdsman_trainer.weights.gguf_types import FILE_TYPES, TypeChoice, gguf_name, stored_bytes
from herdsman_trainer.weights.tensor_spec import TensorSpec

DIRECTORY = "gguf"
"""Where the files lie in an artifact."""


def gguf_path(name: str, output: GgufOutput) -> str:
    """Return where a file lies, relative to the artifact: gguf/NAME-TYPE.gguf."""
    return f"{DIRECTORY}/{name}-{output.type}.gguf"


class GgufSink:
    """One GGUF file, written as the tensors come; it holds one block in memory."""

    exact = True

    def __init__(
        self,
        files: DraftFiles,
        model: GgufDescription,
        output: GgufOutput,
        specs: Sequence[TensorSpec],
        importance: Importance | None = None,
    ) -> None:
        """Decide every tensor's type; nothing is written before the first tensor.

        Raises BadInput where the model does not fit the type.
        """
        self.files = files
        self.name = gguf_path(model.name, output)
        self.types = tensor_types(model, output, specs, weighted=importance is not None)
        self._model = model
        self._file_type = FILE_TYPES[output.type][1]
        self._specs = specs
        self._importance = importance or {}
        self._current: TensorSpec | None = None
        self._start = 0

    @property
    def nbytes(self) -> int:
        """The size of the tensors, without the header."""
        return sum(stored_bytes(self.types[spec.name], spec) for spec in self._specs)

    def row_multiple(self, spec: TensorSpec) -> int:
        """Return the rows of one head for what the rotary embedding turns, else 1."""
        return self._model.head_size if _is_turned(spec.name) else 1

    def begin(self, spec: TensorSpec) -> None:
        """Start a tensor; the first one writes the header."""
        file = self.files.open(self.name)
        if file.position == 0:
            self._write_header(file)
        self._current, self._start = spec, file.position

    def write(self, block: torch.Tensor) -> None:
        """Round the next rows to the tensor's type; raises BadInput for a value that the type cannot hold."""
        spec = self._current
        assert spec is not None
        kind, name = self.types[spec.name], gguf_name(spec.name)
        check_values(name, block, kind)
        if _is_turned(spec.name):
            block = interleaved(block, self._model.head_size)
        self.files.open(self.name).write(quantise(block, kind, self._importance.get(name)))
        HEART.beat()

    def end(self) -> None:
        """Finish the tensor; raises ValueError where its rows did not add up."""
        spec, file = self._current, self.files.open(self.name)
        assert spec is not None
        written, expected = file.position - self._start, stored_bytes(self.types[spec.name], spec)
        if written != expected:
            raise ValueError(f"{spec.name} takes {expected} bytes in {self.name}, {written} were given")
        _pad(file)

    def finish(self) -> None:
        """Write nothing more: a GGUF file ends with its last tensor."""

    def _write_header(self, file: DraftFile) -> None:
        factors = rope_factors(self._model)
        writer = GGUFWriter(None, "llama")
        describe(writer, self._model, self._file_type)
        if self._importance:
            writer.add_uint32("quantize.imatrix.entries_count", len(self._importance))
        if factors is not None:
            writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
        for spec in self._specs:
            kind = self.types[spec.name]
            size = stored_bytes(kind, spec)
            writer.add_tensor_info(gguf_name(spec.name), spec.shape, numpy.dtype("float32"), size, raw_dtype=kind)
        header = BytesIO()
        writer.fout, writer.state = [header], WriterState.EMPTY  # as if it had opened a file: tensors go elsewhere
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        file.write(header.getbuffer())
        _pad(file)
        if factors is not None:
            file.write(factors.tobytes())
            _pad(file)


def _pad(file: DraftFile) -> None:
    file.write(bytes(-file.position % GGUF_DEFAULT_ALIGNMENT))


def tensor_types(
    model: GgufDescription, output: GgufOutput, specs: Sequence[TensorSpec], *, weighted: bool = False
) -> Mapping[str, GGMLQuantizationType]:
    """Return the type of every tensor by its Hugging Face name; raises BadInput as TypeChoice.of does."""
    choice = TypeChoice(output.type, model.layers, model.tied, model.heads != model.key_heads, weighted)
    types = {spec.name: choice.of(gguf_name(spec.name), spec.shape) for spec in specs}
    check_library(types.values(), weighted=weighted)
    return types


def interleaved(block: torch.Tensor, head_size: int) -> torch.Tensor:
    """Return whole heads with the rows i and i + head_size/2 as neighbours, the pairs llama.cpp turns."""
    return block.reshape(-1, 2, head_size // 2, block.shape[-1]).transpose(1, 2).reshape(block.shape)


def _is_turned(name: str) -> bool:
    return name.endswith(("q_proj.weight", "k_proj.weight"))
