"""Checks that the files of a Meta checkpoint fit together and to params.json, and finds how they are put together."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.merge import EMBEDDING, HEAD
from herdsman_trainer.weights.meta_params import MetaParams
from herdsman_trainer.weights.tensor_spec import shape_text

BY_COLUMNS = ("o_proj.weight", "down_proj.weight")
FIRST = "model.layers.0.self_attn.q_proj.weight"
Parts = Mapping[str, Sequence[torch.Tensor]]
MIXED = "The files are of different models: copy one model whole, each file with its SHA-256."


def check_shapes(
    parts: Parts, params: MetaParams, files: Sequence[Path]
) -> tuple[dict[str, int | None], dict[str, tuple[int, ...]]]:
    """Return, by tensor, the dimension along which its parts are joined, and the shape of the whole.

    Raises BadInput for a wrong number of files, for parts that cannot be joined, for norms that differ between the
    files, and for figures of params.json that contradict the weights.
    """
    where = str(files[0].parent)
    for name in (EMBEDDING, FIRST, "model.layers.0.mlp.gate_proj.weight"):
        if name not in parts:
            raise BadInput(f"The files lack {name} under Meta's name.", file=where, hint=MIXED)
    _check_count(parts[FIRST][0], params, files)
    axes = {name: _axis(name, part, params) for name, part in parts.items()}
    shapes = {name: _joined(name, parts[name], axes[name], files) for name in parts}
    for name, shape in shapes.items():
        _check_figures(name, shape, shapes, params)
    _check_layers(parts, params)
    _check_norms(parts, axes, files)
    return axes, shapes


def _check_count(first: torch.Tensor, params: MetaParams, files: Sequence[Path]) -> None:
    """Compare the number of files with what one of them holds of the first query projection."""
    rows = first.shape[0]
    if first.dim() != 2 or first.shape[1] != params.dim or params.dim % rows:
        message = f"dim is {params.dim} and wq of {files[0].name} is {shape_text(tuple(first.shape))}."
        raise BadInput(message, file=str(params.path), hint="params.json is of another model: copy that of this one.")
    wanted = params.dim // rows
    if wanted > len(files):
        missing = files[0].with_name(f"consolidated.{len(files):02d}.pth")
        message = f"The model has {wanted} files by its shapes, and {len(files)} are there."
        raise BadInput(message, file=str(missing), hint="Copy the missing file from the source.")
    if wanted < len(files):
        message = f"The model has {wanted} files by its shapes, and {len(files)} are there."
        raise BadInput(message, file=str(files[wanted]), hint="Move away what is not of this model.")


def _axis(name: str, parts: Sequence[torch.Tensor], params: MetaParams) -> int | None:
    if parts[0].dim() == 1:
        return None
    if name == EMBEDDING:  # by columns before Llama 3, by rows since
        return 0 if parts[0].shape[1] == params.dim else 1
    return 1 if name.endswith(BY_COLUMNS) else 0


def _joined(name: str, parts: Sequence[torch.Tensor], axis: int | None, files: Sequence[Path]) -> tuple[int, ...]:
    shapes = [tuple(part.shape) for part in parts]
    if len(shapes[0]) not in (1, 2):
        raise BadInput(f"{name} has {len(shapes[0])} dimensions.", file=str(files[0]), hint=MIXED)
    for shape, part, path in zip(shapes, parts, files, strict=True):
        other = None if axis is None else 1 - axis
        same = shape == shapes[0] if other is None else len(shape) == 2 and shape[other] == shapes[0][other]
        if not same or part.dtype != parts[0].dtype:
            message = f"{name} is {shape_text(shape)} ({part.dtype}) here and {shape_text(shapes[0])} "
            message += f"({parts[0].dtype}) in {files[0].name}."
            raise BadInput(message, file=str(path), hint=MIXED)
    if axis is None:
        return shapes[0]
    total = sum(shape[axis] for shape in shapes)
    return (total, shapes[0][1]) if axis == 0 else (shapes[0][0], total)


def _check_figures(
    name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], params: MetaParams
) -> None:
    """Compare a shape with what params.json, the vocabulary and the width of the feed-forward layer call for."""
    dim, wide = params.dim, shapes["model.layers.0.mlp.gate_proj.weight"][0]
    rows = params.vocab_size or shapes[EMBEDDING][0]
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        EMBEDDING: ((rows, dim), f"vocab_size {rows}, dim {dim}"),
        HEAD: ((rows, dim), f"{rows} rows of the embedding"),
        "q_proj": ((dim, dim), f"dim {dim}"),
        "k_proj": ((params.kv_heads * params.head_dim, dim), f"n_heads {params.heads}, n_kv_heads {params.kv_heads}"),
        "v_proj": ((params.kv_heads * params.head_dim, dim), f"n_heads {params.heads}, n_kv_heads {params.kv_heads}"),
        "o_proj": ((dim, dim), f"dim {dim}"),
        "gate_proj": ((wide, dim), f"w1 of the first layer, dim {dim}"),
        "up_proj": ((wide, dim), f"w1 of the first layer, dim {dim}"),
        "down_proj": ((dim, wide), f"w1 of the first layer, dim {dim}"),
    }
    key = name if name in expected else name.split(".")[-2]
    wanted, why = expected.get(key, ((dim,), f"dim {dim}"))
    if shape != wanted:
        message = f"{name} is {shape_text(shape)} in the weights, and {shape_text(wanted)} by params.json ({why})."
        hint = "params.json is of another model, or files are: copy that of this one."
        if key in ("k_proj", "v_proj") and shape[0] % params.head_dim == 0:
            hint += f" By the weights n_kv_heads would be {shape[0] // params.head_dim}."
        if name == EMBEDDING and shape[1] == dim:
            hint += f" By the weights vocab_size is {shape[0]}."
        raise BadInput(message, file=str(params.path), hint=hint)


def _check_layers(parts: Parts, params: MetaParams) -> None:
    layers = {int(name.split(".")[2]) for name in parts if name.startswith("model.layers.")}
    if layers != set(range(params.layers)):
        message = f"n_layers is {params.layers} and the weights have {len(layers)} layers, up to {max(layers)}."
        raise BadInput(message, file=str(params.path), hint="params.json is of another model: copy that of this one.")


def _check_norms(parts: Parts, axes: Mapping[str, int | None], files: Sequence[Path]) -> None:
    """Norms lie in every file: where they differ, the files are of models that only have the same size."""
    for name, axis in axes.items():
        for part, path in zip(parts[name], files, strict=True):
            if axis is None and not torch.allclose(part.float(), parts[name][0].float(), rtol=1e-2, atol=1e-3):
                message = f"{name}, which lies in every file, is not the same here as in {files[0].name}."
                raise BadInput(message, file=str(path), hint=MIXED)
