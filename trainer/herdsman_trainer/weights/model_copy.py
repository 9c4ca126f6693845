"""Opens a Hugging Face directory for ModelImport: safetensors are copied byte for byte, or written in another type;
the tensors of .bin files become safetensors.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from herdsman.api.job_config import FileDigest
from herdsman_trainer.errors import BadInput
from herdsman_trainer.free_space import require_space
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.tokenizer_files import TOKENIZER_FILES
from herdsman_trainer.tokenizers import TextTokenizer, copy_tokenizer, load_tokenizer
from herdsman_trainer.weights.architecture import check_tensors
from herdsman_trainer.weights.chain import CONFIG_FILE, GENERATION_FILE
from herdsman_trainer.weights.digests import CHUNK_BYTES
from herdsman_trainer.weights.merge import BLOCK_VALUES, EMBEDDING, HEAD
from herdsman_trainer.weights.model_writing import Announce, token_ids, write_json
from herdsman_trainer.weights.opened_model import Digests, OpenedModel, announced_blocks
from herdsman_trainer.weights.pickle_model import MappedTensors, check_strangers, open_bin_weights
from herdsman_trainer.weights.reading import INDEX_FILE, TensorFiles, open_model_weights, read_json_object
from herdsman_trainer.weights.tensor_digests import DIGESTS_FILE, PassingFile, TensorDigest
from herdsman_trainer.weights.tensor_spec import TensorSpec, dtype_name
from herdsman_trainer.weights.vocabulary import check_base, is_tied, main_dtype
from herdsman_trainer.weights.writing import write_model_weights, write_tensor_digests

OLD_TABLE = "rotary_emb.inv_freq"
"""A table that old releases of transformers stored with the weights and newer ones compute."""


def open_directory(source: Path, dtype: torch.dtype | None, *, pickled: bool, frozen: bool = False) -> OpenedModel:
    """Open a directory with config.json, a tokenizer and weights: safetensors, or with `pickled` .bin files.

    Files that nobody ever changes (`frozen`) are hard-linked into the result instead of copied, where that is possible.
    Raises BadInput where the parts of the model are damaged or contradict each other, where it would not load
    strictly, and where it is quantised.
    """
    weights = open_bin_weights(source) if pickled else open_model_weights(source)
    if (source / INDEX_FILE).is_file() and not pickled:
        check_strangers(source, [path.name for path in weights.files], INDEX_FILE)
    path = source / CONFIG_FILE
    config = read_json_object(path, remedy="Copy config.json from the source of the model.")
    if "quantization_config" in config:
        hint = "Import the weights as they were before quantisation: float32, bfloat16 or float16."
        raise BadInput("The model is quantised in a form that is not read.", file=str(path), hint=hint)
    check_base(weights.specs, config, str(source))
    specs = _result(weights, config, dtype)
    check_tensors(specs, config, str(source))
    load_tokenizer(source)
    stored = main_dtype(weights.specs[EMBEDDING].dtype)
    same_type = all(weights.specs[spec.name].dtype == spec.dtype for spec in specs)
    copies = same_type and not isinstance(weights, MappedTensors)

    def write(target: Path, tokenizer: TextTokenizer, announce: Announce) -> Digests:
        if copies:
            digests = _copy_weights(weights, source, target, announce, frozen=frozen)
        else:
            blocks = announced_blocks(lambda spec: _blocks(weights, spec), specs, announce)
            digests = write_model_weights(target, specs, blocks)
        _write_configs(source, target, tokenizer, config, None if same_type else dtype)
        return digests

    others = (CONFIG_FILE, GENERATION_FILE, *TOKENIZER_FILES)
    return OpenedModel(
        where=source,
        weights=[*weights.files, *([source / INDEX_FILE] if copies and (source / INDEX_FILE).is_file() else [])],
        others=[source / name for name in others if (source / name).is_file()],
        specs=specs,
        vocab_size=weights.specs[EMBEDDING].shape[0],
        dtype=dtype or stored,
        write_tokenizer=lambda target: copy_tokenizer(source, target),
        write=write,
        figures={"tensors": len(specs), "tied_embeddings": str(is_tied(config)).lower()},
        copies=copies,
        form="huggingface" if pickled else None,
        size=(int(config.get("hidden_size") or 0), int(config.get("num_hidden_layers") or 0)),
    )


def _result(weights: TensorFiles, config: Mapping[str, Any], dtype: torch.dtype | None) -> list[TensorSpec]:
    """Return what strict loading needs of the stored tensors: no old tables, and no head that is the embedding."""
    kept = [spec for name, spec in weights.specs.items() if not name.endswith(OLD_TABLE)]
    kept = [spec for spec in kept if not (spec.name == HEAD and is_tied(config))]
    return [replace(spec, dtype=dtype) if dtype and spec.dtype.is_floating_point else spec for spec in kept]


def _blocks(weights: TensorFiles, spec: TensorSpec) -> Iterator[torch.Tensor]:
    tensor = weights.tensor(spec.name)
    if not tensor.dim():
        yield tensor.to(spec.dtype)
        return
    step = max(1, BLOCK_VALUES * max(len(tensor), 1) // max(prod(tensor.shape), 1))
    for start in range(0, len(tensor), step):
        yield tensor[start : start + step].to(spec.dtype)


def _write_configs(
    source: Path, target: Path, tokenizer: TextTokenizer, config: Mapping[str, Any], dtype: torch.dtype | None
) -> None:
    """Copy the configurations; with `dtype`, config.json says it. What is missing follows from the tokenizer."""
    if dtype is None:
        (target / CONFIG_FILE).write_bytes((source / CONFIG_FILE).read_bytes())
    else:
        named = {name: dtype_name(dtype) for name in ("dtype", "torch_dtype") if name in config or name == "dtype"}
        write_json(target / CONFIG_FILE, {**config, **named})
    if (source / GENERATION_FILE).is_file():
        (target / GENERATION_FILE).write_bytes((source / GENERATION_FILE).read_bytes())
    else:
        write_json(target / GENERATION_FILE, token_ids(tokenizer, known_eos=config.get("eos_token_id")))


def _copy_weights(weights: TensorFiles, source: Path, target: Path, announce: Announce, *, frozen: bool) -> Digests:
    names = [path.name for path in weights.files]
    names += [INDEX_FILE] if (source / INDEX_FILE).is_file() else []
    total = sum((source / name).stat().st_size for name in names)
    linked = {name for name in names if frozen and link(source / name, target / name)}
    require_space(target, sum((source / name).stat().st_size for name in set(names) - linked), "the model")
    copied = 0

    def on_bytes(count: int) -> None:
        nonlocal copied
        copied += count
        announce(f"{'reading' if name in linked else 'copying'} {name}", copied / total)

    tensors: dict[str, TensorDigest] = {}
    digests: dict[str, FileDigest] = {}
    for name in names:
        passing = PassingFile(source / name) if name != INDEX_FILE else None
        digests[name] = _copy(source / name, None if name in linked else target / name, on_bytes, passing)
        tensors |= passing.digests if passing else {}
    digests[DIGESTS_FILE] = write_tensor_digests(target, tensors)
    return digests


def link(source: Path, target: Path) -> bool:
    """Hard-link a file that is never changed; False where the file system does not let it."""
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        return False
    return True


def _copy(
    source: Path, target: Path | None, on_bytes: Callable[[int], None], passing: PassingFile | None
) -> FileDigest:
    """Copy a file and take the digests of it and its tensors in the same pass; `on_bytes` hears of each piece.

    It is copied rather than hard-linked: a later change of the source must not change a published artifact. Without a
    target it is only read.
    """
    digest = hashlib.sha256()
    size = 0
    with source.open("rb") as reader, target.open("wb") if target else nullcontext() as writer:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            if passing:
                passing.update(chunk)
            if writer:
                writer.write(chunk)
            size += len(chunk)
            HEART.beat()
            on_bytes(len(chunk))
    return FileDigest(bytes=size, sha256=digest.hexdigest())
