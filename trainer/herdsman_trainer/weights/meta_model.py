"""Reads Meta's consolidated.*.pth as a Hugging Face Llama, a block of rows at a time.

Meta spreads every matrix over the files of a model: projections into the heads and the feed-forward layer by rows,
those out of them by columns; norms lie in every file. Rows of the query and key projections are interleaved for Meta's
rotary embedding, which `_half_by_half` undoes.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.architecture import llama_config
from herdsman_trainer.weights.merge import BLOCK_VALUES, EMBEDDING, HEAD
from herdsman_trainer.weights.meta_params import PARAMS_FILE, MetaParams, read_params
from herdsman_trainer.weights.meta_shapes import check_shapes
from herdsman_trainer.weights.pickle_reading import read_tensors
from herdsman_trainer.weights.tensor_spec import TensorSpec, dtype_name

SHARD_NAME = re.compile(r"^consolidated\.(\d\d)\.pth$")
MOST_SHARDS = 8
GLOBAL_NAMES = {"tok_embeddings.weight": EMBEDDING, "norm.weight": "model.norm.weight", "output.weight": HEAD}
LAYER_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


@dataclass(frozen=True)
class MetaModel:
    """The files of a model, mapped into memory, whose shapes fit together and to params.json."""

    params: MetaParams
    files: Sequence[Path]
    parts: Mapping[str, Sequence[torch.Tensor]]
    """What each file holds of a tensor, by its Hugging Face name."""
    axes: Mapping[str, int | None]
    """The dimension along which the parts are put together; None where every file holds the whole."""
    shapes: Mapping[str, tuple[int, ...]]

    @cached_property
    def tied(self) -> bool:
        """Whether the head is the embedding: Llama 3.2 1B and 3B store it twice."""
        if HEAD not in self.parts:
            return True
        return self.shapes[HEAD] == self.shapes[EMBEDDING] and self._same(EMBEDDING, HEAD)

    def specs(self, dtype: torch.dtype | None = None) -> list[TensorSpec]:
        """Return names and shapes as transformers has them, in the stored type or the given one."""
        tied = self.tied
        names = [name for name in self.parts if not (tied and name == HEAD)]
        return [TensorSpec(name, dtype or self.parts[name][0].dtype, self.shapes[name]) for name in names]

    def config(self, dtype: torch.dtype) -> dict[str, Any]:
        """Return config.json."""
        params = self.params
        return llama_config(
            vocab_size=self.shapes[EMBEDDING][0],
            hidden_size=params.dim,
            intermediate_size=self.shapes["model.layers.0.mlp.gate_proj.weight"][0],
            num_hidden_layers=params.layers,
            num_attention_heads=params.heads,
            num_key_value_heads=params.kv_heads,
            head_dim=params.head_dim,
            max_position_embeddings=params.context,
            rms_norm_eps=params.norm_eps,
            rope_parameters=params.rope,
            tie_word_embeddings=self.tied,
            dtype=dtype_name(dtype),
        )

    def blocks(self, spec: TensorSpec) -> Iterator[torch.Tensor]:
        """Yield the values of a tensor as blocks of rows in the spec's type."""
        turned = spec.name.endswith(("q_proj.weight", "k_proj.weight"))
        unit = self.params.head_dim if turned else 1
        step = max(1, BLOCK_VALUES * spec.shape[0] // prod(spec.shape) // unit) * unit
        for start in range(0, spec.shape[0], step):
            block = self._rows(spec.name, start, min(start + step, spec.shape[0]))
            yield (_half_by_half(block, unit) if turned else block).to(spec.dtype)

    def _rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the rows of the whole tensor, as Meta has them."""
        parts, axis = self.parts[name], self.axes[name]
        if axis == 1:
            return torch.cat([part[start:stop] for part in parts], dim=1)
        pieces, first = [], 0
        for part in parts[:1] if axis is None else parts:
            low, high = max(start - first, 0), min(stop - first, len(part))
            if low < high:
                pieces.append(part[low:high])
            first += len(part)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _same(self, one: str, other: str) -> bool:
        rows, columns = self.shapes[one]
        step = max(1, BLOCK_VALUES // columns)
        spans = ((start, min(start + step, rows)) for start in range(0, rows, step))
        return all(torch.equal(self._rows(one, *span), self._rows(other, *span)) for span in spans)


def has_meta(directory: Path) -> bool:
    """Whether a directory holds weights of this form."""
    return any(SHARD_NAME.match(path.name) for path in directory.glob("consolidated.*.pth"))


def open_meta(directory: Path) -> MetaModel:
    """Open consolidated.*.pth and params.json.

    Raises BadInput, naming the file, where params.json is missing or contradicts the shapes, where a file is missing,
    one too many, cut or holds more than tensors (pickle_reading), and where files do not belong together.
    """
    files = _files(directory)
    params = read_params(directory)
    shards = [_named(path, read_tensors(path)) for path in files]
    names = shards[0].keys()
    for path, shard in zip(files, shards, strict=True):
        if odd := sorted(names ^ shard.keys()):
            have, lack = (path, files[0]) if odd[0] in shard else (files[0], path)
            message = f"The file lacks {odd[0]}, which {have.name} has."
            raise BadInput(message, file=str(lack), hint="The files are of different models: copy one model whole.")
    parts = {name: [shard[name] for shard in shards] for name in names}
    axes, shapes = check_shapes(parts, params, files)
    return MetaModel(params, files, parts, axes, shapes)


def _files(directory: Path) -> list[Path]:
    files = sorted(path for path in directory.glob("consolidated.*.pth") if SHARD_NAME.match(path.name))
    for number, path in enumerate(files):
        if path.name != (wanted := f"consolidated.{number:02d}.pth"):
            message = f"The file {wanted} is missing, and {path.name} is there."
            raise BadInput(message, file=str(directory / wanted), hint="Copy the missing file from the source.")
    if len(files) > MOST_SHARDS:
        message = f"The model has {len(files)} files; models of 1 to {MOST_SHARDS} are read."
        raise BadInput(message, file=str(directory), hint="Import its Hugging Face form instead.")
    return files


def _named(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by their Hugging Face names; tables of the rotary embedding are left out."""
    return {_name(name, path): tensor for name, tensor in tensors.items() if not name.endswith("rope.freqs")}


def _name(name: str, path: Path) -> str:
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    match = re.match(r"^layers\.(\d+)\.(.+)\.weight$", name)
    if match and match[2] in LAYER_NAMES:
        return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.weight"
    hint = f"Name a directory with {PARAMS_FILE} and consolidated.*.pth of LLaMA, Llama 2 or Llama 3."
    raise BadInput(f"The file has a tensor {name}, which a plain Llama has not.", file=str(path), hint=hint)


def _half_by_half(rows: torch.Tensor, head: int) -> torch.Tensor:
    """Reorder whole heads: rows 2i and 2i+1, which Meta turns together, become rows i and i + head/2."""
    return rows.reshape(-1, head // 2, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
