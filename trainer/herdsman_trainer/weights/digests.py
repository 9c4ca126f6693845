"""SHA-256 of files, and of tensors independently of the file they lie in."""

import hashlib

import torch

from herdsman_trainer.plain_files import CHUNK_BYTES as CHUNK_BYTES
from herdsman_trainer.plain_files import digest_file as digest_file
from herdsman_trainer.weights.tensor_spec import TensorSpec, dtype_name, tensor_bytes


class TensorHash:
    """The digest of one tensor, taken block by block while its values pass through.

    It is SHA-256 over the line "name type [shape]" and the values, so it is the same whatever file, shard or container
    the tensor lies in, unlike the digest of a whole file.
    """

    def __init__(self, spec: TensorSpec) -> None:
        head = f"{spec.name} {dtype_name(spec.dtype)} {list(spec.shape)}\n"
        self._digest = hashlib.sha256(head.encode())

    def update(self, values: bytes | memoryview) -> None:
        """Take the next bytes of the values: little-endian, row by row (tensor_spec.tensor_bytes)."""
        self._digest.update(values)

    def hexdigest(self) -> str:
        """Return the digest of what has passed."""
        return self._digest.hexdigest()


def digest_tensor(name: str, tensor: torch.Tensor) -> str:
    """Return the TensorHash of a tensor that is in memory, under a name."""
    digest = TensorHash(TensorSpec(name, tensor.dtype, tuple(tensor.shape)))
    digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
