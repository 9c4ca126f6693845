"""Copies a Hugging Face model directory after checking it, byte for byte or in another type."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from herdsman.api.job_config import FileDigest
from herdsman_trainer.errors import BadInput
from herdsman_trainer.free_space import require_space
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.tokenizers import copy_tokenizer
from herdsman_trainer.weights.architecture import check_tensors
from herdsman_trainer.weights.chain import CONFIG_FILE, GENERATION_FILE, open_chain
from herdsman_trainer.weights.digests import CHUNK_BYTES
from herdsman_trainer.weights.merge import EMBEDDING
from herdsman_trainer.weights.model_writing import Announce, Figures, WrittenModel, write_chain
from herdsman_trainer.weights.reading import INDEX_FILE


def copy_model(
    source: Path, target: Path, dtype: torch.dtype | None, checked: Mapping[str, FileDigest], announce: Announce
) -> WrittenModel:
    """Copy the weights, configuration and tokenizer into an empty directory; other files are left behind.

    With `dtype` other than the stored type the weights are written anew in it. `checked` are digests that files of
    the source had before. Raises BadInput where the parts of the model contradict each other (weights.chain), where
    it would not load strictly, and where a file changed since it was checked. Raises Temporary (DiskFull) where
    there is no room for it.
    """
    chain = open_chain(source, dtype=dtype)
    plan, weights = chain.merge.plan, chain.model.weights
    check_tensors(plan.specs, chain.model.config, str(source))
    figures: Figures = {
        "tensors": len(plan.specs),
        "files_with_expected_sha256": len(checked),
        "tied_embeddings": str(plan.tied).lower(),
    }
    stored = weights.specs[EMBEDDING].dtype
    if dtype is not None and any(weights.specs[name].dtype != spec.spec.dtype for name, spec in plan.tensors.items()):
        digests = write_chain(chain, target, announce=announce)
        return WrittenModel(plan.vocab_size, chain.tokenizer, dtype, figures, digests)
    optional = (INDEX_FILE, CONFIG_FILE, GENERATION_FILE)
    names = [path.name for path in weights.files] + [name for name in optional if (source / name).is_file()]
    digests = {}
    total = sum((source / name).stat().st_size for name in names)
    require_space(target, total, "the model")
    copied = 0

    def on_bytes(count: int) -> None:
        nonlocal copied
        copied += count
        announce(f"copying {name}", copied / total)

    for name in names:
        digests[name] = _copy(source / name, target / name, on_bytes)
        if digests[name] != checked.get(name, digests[name]):
            message = "The file changed between its check and its copy."
            raise BadInput(message, reason="ChecksumMismatch", file=str(source / name), hint="Import it again.")
    copy_tokenizer(source, target)
    return WrittenModel(plan.vocab_size, chain.tokenizer, stored, figures, digests)


def _copy(source: Path, target: Path, on_bytes: Callable[[int], None]) -> FileDigest:
    """Copy a file and take its digest in the same pass; `on_bytes` hears how much was copied since the last call.

    It is copied rather than hard-linked: a later change of the source must not change a published artifact.
    """
    digest = hashlib.sha256()
    size = 0
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
            size += len(chunk)
            HEART.beat()
            on_bytes(len(chunk))
    return FileDigest(bytes=size, sha256=digest.hexdigest())
