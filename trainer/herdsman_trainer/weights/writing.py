"""Writes safetensors as a stream: sizes are known first, values pass through once, digests come for free."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from herdsman.api.job_config import FileDigest
from herdsman_trainer.free_space import require_space
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.plain_files import write_file as write_file
from herdsman_trainer.weights.reading import INDEX_FILE, SINGLE_FILE
from herdsman_trainer.weights.tensor_digests import (
    DIGESTS_FILE,
    RecordedBlocks,
    TensorDigests,
    tensor_digests_document,
)
from herdsman_trainer.weights.tensor_spec import CODES, TensorSpec, shape_text, tensor_bytes

MAX_SHARD_BYTES = 4 * 1024**3

Blocks = Callable[[TensorSpec], Iterable[torch.Tensor]]
"""Gives the values of a tensor as consecutive blocks of rows, each of the tensor's own type."""


def write_safetensors(
    path: Path, specs: Sequence[TensorSpec], blocks: Blocks, *, metadata: Mapping[str, str] | None = None
) -> FileDigest:
    """Write one safetensors file and fsync it, holding one block in memory at a time.

    Wide types come first, so that every tensor starts aligned to its type; within a type the given order stays.
    Raises ValueError where the blocks of a tensor do not add up to its declared size.
    """
    ordered = file_order(specs)
    head = safetensors_head(ordered, metadata)
    size = len(head) + sum(spec.nbytes for spec in specs)
    digest = hashlib.sha256()
    path.unlink(missing_ok=True)  # whoever has the old file mapped keeps it; truncating it would kill that process
    with path.open("wb") as stream:
        for chunk in _file_chunks(head, ordered, blocks):
            digest.update(chunk)
            stream.write(chunk)
            HEART.beat()
        stream.flush()
        with HEART.handling(size):
            os.fsync(stream.fileno())
    return FileDigest(bytes=size, sha256=digest.hexdigest())


def file_order(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return tensors in the order of a file: wide types first, so that each starts aligned to its type."""
    return sorted(specs, key=lambda spec: -spec.dtype.itemsize)


def safetensors_head(ordered: Sequence[TensorSpec], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return what stands before the values in a file that holds these tensors in this order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for spec in ordered:
        header[spec.name] = {
            "dtype": CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head


def _file_chunks(head: bytes, specs: Sequence[TensorSpec], blocks: Blocks) -> Iterator[bytes | memoryview]:
    yield head
    for spec in specs:
        written = 0
        for block in blocks(spec):
            if block.dtype != spec.dtype:
                raise ValueError(f"{spec.name} is declared as {spec.dtype} and a block of it has {block.dtype}")
            chunk = tensor_bytes(block)
            written += chunk.nbytes
            yield chunk
        if written != spec.nbytes:
            raise ValueError(f"{spec.name} ({shape_text(spec.shape)}) has {spec.nbytes} bytes, {written} were given")


def plan_shards(specs: Sequence[TensorSpec], max_shard_bytes: int = MAX_SHARD_BYTES) -> list[list[TensorSpec]]:
    """Distribute tensors over shards in the given order; only a tensor that is larger by itself exceeds the limit."""
    shards: list[list[TensorSpec]] = [[]]
    room = max_shard_bytes
    for spec in specs:
        if shards[-1] and spec.nbytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(spec)
        room -= spec.nbytes
    return shards


def shard_names(count: int) -> list[str]:
    """Return the names of a model's files: one alone, or several that an index belongs to."""
    if count == 1:
        return [SINGLE_FILE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_model_weights(
    directory: Path,
    specs: Sequence[TensorSpec],
    blocks: Blocks,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_file: Callable[[str], None] = lambda _: None,
) -> dict[str, FileDigest]:
    """Write the weights of a Hugging Face model directory and tensor-digests.json; returns each file's size and digest.

    One shard is `model.safetensors`; several are `model-00001-of-0000N.safetensors` with their index.
    `on_file` is called with the name of each finished file. Raises Temporary (DiskFull), before anything is written,
    where the volume has no room for them.
    """
    require_space(directory, sum(spec.nbytes for spec in specs), "the model's weights")
    shards = plan_shards(specs, max_shard_bytes)
    names = shard_names(len(shards))
    written: dict[str, FileDigest] = {}
    recorded = RecordedBlocks()
    for name, shard in zip(names, shards, strict=True):
        written[name] = write_safetensors(directory / name, shard, lambda spec: recorded.record(spec, blocks(spec)))
        on_file(name)
    written[DIGESTS_FILE] = write_tensor_digests(directory, recorded.digests)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(spec.nbytes for spec in specs)},
            "weight_map": {spec.name: name for name, shard in zip(names, shards, strict=True) for spec in shard},
        }
        written[INDEX_FILE] = write_file(directory / INDEX_FILE, json.dumps(index, indent=2).encode())
    return written


def write_tensor_digests(directory: Path, digests: TensorDigests) -> FileDigest:
    """Write tensor-digests.json into an artifact's directory; returns its own digest, for `known` of publish."""
    return write_file(directory / DIGESTS_FILE, tensor_digests_document(digests))


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], recorded: RecordedBlocks | None = None
) -> FileDigest:
    """Write tensors that are in memory to one safetensors file and fsync it; `recorded` takes their digests."""
    specs = [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]

    def blocks(spec: TensorSpec) -> Iterable[torch.Tensor]:
        values = (tensors[spec.name].detach().cpu(),)
        return values if recorded is None else recorded.record(spec, values)

    return write_safetensors(path, specs, blocks)
