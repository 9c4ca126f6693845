"""tensor-digests.json: what every tensor of an artifact is, whatever files it is spread over.

Digests of whole files change with the library that wrote them and with the size of the shards; those of tensors do not.
A model's are of its Hugging Face tensors, an adapter's of the keys of its file.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.digests import TensorHash
from herdsman_trainer.weights.reading import read_header, read_json_object
from herdsman_trainer.weights.tensor_spec import TensorSpec, dtype_name, tensor_bytes

DIGESTS_FILE = "tensor-digests.json"


@dataclass(frozen=True)
class TensorDigest:
    """What one tensor is."""

    dtype: str
    """As config.json spells it: bfloat16."""
    shape: tuple[int, ...]
    sha256: str
    """digests.TensorHash."""


TensorDigests = Mapping[str, TensorDigest]
"""By name."""


def tensor_digest(spec: TensorSpec, digest: TensorHash) -> TensorDigest:
    """Return the entry of a tensor whose values have all passed through `digest`."""
    return TensorDigest(dtype_name(spec.dtype), spec.shape, digest.hexdigest())


def tensor_digests_document(digests: TensorDigests) -> bytes:
    """Return the content of the file: JSON with one line for each tensor, sorted by name."""
    lines = (
        json.dumps(name) + ": " + json.dumps({"dtype": one.dtype, "shape": list(one.shape), "sha256": one.sha256})
        for name, one in sorted(digests.items())
    )
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def read_tensor_digests(directory: Path) -> TensorDigests | None:
    """Read the file of an artifact, None where it has none; raises BadInput where it is damaged."""
    path = directory / DIGESTS_FILE
    if not path.is_file():
        return None
    again = "Copy the artifact again, or delete this file: the digests are then not compared."
    entries = read_json_object(path, remedy=again)
    try:
        return {name: _entry(value) for name, value in entries.items()}
    except (KeyError, TypeError, ValueError):
        raise BadInput("The digests of the tensors cannot be read.", file=str(path), hint=again) from None


def _entry(value: Any) -> TensorDigest:
    return TensorDigest(str(value["dtype"]), tuple(int(size) for size in value["shape"]), str(value["sha256"]))


class RecordedBlocks:
    """Takes the digests of tensors while somebody else reads their blocks.

    Wrap what gives the blocks, hand the wrapper to a writer, and take `digests` afterwards.
    """

    def __init__(self) -> None:
        self.digests: dict[str, TensorDigest] = {}

    def record(self, spec: TensorSpec, blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the blocks of a tensor; its digest is there after the last."""
        digest = TensorHash(spec)
        for block in blocks:
            digest.update(tensor_bytes(block))
            yield block
        self.digests[spec.name] = tensor_digest(spec, digest)


class PassingFile:
    """Takes the digests of a safetensors file's tensors while the bytes of the file pass, as in a copy."""

    def __init__(self, path: Path) -> None:
        """Read the header of the file; raises BadInput as reading.read_header does."""
        self.digests: dict[str, TensorDigest] = {}
        self.path = path
        self._specs = list(reversed(read_header(path).values()))
        with path.open("rb") as stream:
            self._skip = 8 + int.from_bytes(stream.read(8), "little")
        self._spec: TensorSpec | None = None
        self._left = 0

    def update(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes of the file."""
        rest = memoryview(chunk)[self._skip :]
        self._skip -= min(self._skip, len(chunk))
        while len(rest):
            if self._spec is None:
                self._spec = self._specs.pop()
                self._digest, self._left = TensorHash(self._spec), self._spec.nbytes
            part = rest[: self._left]
            self._digest.update(part)
            self._left -= len(part)
            rest = rest[len(part) :]
            if not self._left:
                self.digests[self._spec.name] = tensor_digest(self._spec, self._digest)
                self._spec = None
