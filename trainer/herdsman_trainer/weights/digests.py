"""SHA-256 of files, and of tensors independently of the file they lie in."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from herdsman.api.job_config import FileDigest
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.weights.tensor_spec import dtype_name
from herdsman_trainer.weights.writing import tensor_bytes

CHUNK_BYTES = 8 * 1024**2


def digest_file(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> FileDigest:
    """Read a file once and return its size and SHA-256; `on_bytes` hears how much was read since the last call."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            HEART.beat()
            on_bytes(len(chunk))
    return FileDigest(bytes=size, sha256=digest.hexdigest())


def digest_tensor(name: str, tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's name, type, shape and values.

    It is the same whatever file, shard or container the tensor lies in, unlike the digest of a whole file.
    """
    digest = hashlib.sha256(f"{name} {dtype_name(tensor.dtype)} {list(tensor.shape)}\n".encode())
    digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
