"""Reads checkpoints that torch.save wrote, without running anything in them and without loading them into memory.

Such a file is a zip archive: a pickle that names the tensors, and their values as uncompressed records. torch reads the
pickle with an interpreter that knows tensors and nothing else (weights_only), and maps the values into memory.
"""

import hashlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from herdsman.api.job_config import FileDigest
from herdsman_trainer.errors import BadInput
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.weights.tensor_spec import CODES, TensorSpec

OLDEST_TORCH = (2, 10)
"""Before it, weights_only could be led to write outside of its memory."""
CHUNK_BYTES = 8 * 1024**2
AGAIN = "Copy the file again and compare its SHA-256 with the source."
NEVER_RUN = "Pickle files with more than tensors are not read, and nothing in them is run: ask for safetensors instead."
_LOCAL_HEADER_BYTES = 30


@dataclass(frozen=True)
class Record:
    """One member of the archive, as it lies in the file."""

    name: str
    start: int
    bytes: int
    crc: int
    """CRC-32 of its values; 0 where it was not taken."""


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the named tensors of a checkpoint, mapped into memory: they must not be written to.

    Raises BadInput, naming the file, where it is missing, cut, of another format, where its pickle asks for anything
    but tensors (naming what), and where torch is too old to read it safely.
    """
    check_torch(path)
    read_records(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # noqa: BLE001 - a damaged or hostile pickle raises nearly anything
        raise _refused(path, error) from None
    if not isinstance(content, dict):
        message = f"The file holds a {type(content).__name__} and not named tensors."
        raise BadInput(message, file=str(path), hint="Save a state dict: torch.save(model.state_dict(), path).")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            message = f"The entry {name!r} is a {type(value).__name__} and not a tensor."
            raise BadInput(message, file=str(path), hint="Save the state dict of the model alone.")
        if value.device.type != "cpu" or value.layout != torch.strided or value.dtype not in CODES:
            message = f"{name} is stored as {value.dtype} on {value.device.type} ({value.layout}), which is not read."
            raise BadInput(message, file=str(path), hint="Save plain tensors: float32, bfloat16 or float16.")
    return {name: value.detach() for name, value in content.items()}


def tensor_specs(tensors: dict[str, torch.Tensor]) -> dict[str, TensorSpec]:
    """Return names, types and shapes of tensors."""
    return {name: TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def check_torch(path: Path, version: str = torch.__version__) -> None:
    """Raise BadInput where the installed torch reads pickles unsafely."""
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_TORCH:
        message = f"This is a pickle file, which torch {version} does not read safely."
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise BadInput(message, file=str(path), hint=f"Install torch {oldest} or newer, or use safetensors.")


def read_records(path: Path) -> list[Record]:
    """Return the members of the archive in the order of the file; raises BadInput where it is none, or is cut."""
    first = b""
    try:
        with path.open("rb") as stream:
            first = stream.read(2)
            with zipfile.ZipFile(stream) as archive:
                members = sorted(archive.infolist(), key=lambda member: member.header_offset)
            records = [_record(stream, member) for member in members]
    except FileNotFoundError:
        raise BadInput("The weight file is missing.", file=str(path), hint=AGAIN) from None
    except (zipfile.BadZipFile, ValueError, RuntimeError) as error:
        raise _no_archive(path, first, error) from None
    if packed := next((member for member in members if member.compress_type != zipfile.ZIP_STORED), None):
        message = f"Its member {packed.filename} is compressed, which torch never does."
        raise BadInput(message, file=str(path), hint="Save it with torch.save, without packing it anew.")
    return records


def digest_checkpoint(path: Path, on_bytes: Callable[[int], None]) -> FileDigest:
    """Read a checkpoint once and return its size and SHA-256; the CRC-32 of each record is checked on the way.

    Raises BadInput (ChecksumMismatch), naming the record, where its values are not those that were saved: torch itself
    does not look.
    """
    digest = hashlib.sha256()
    records = read_records(path)
    position = 0
    with path.open("rb") as stream:
        for record in records:
            for chunk in _chunks(stream, record.start - position, on_bytes):
                digest.update(chunk)
            crc = 0
            for chunk in _chunks(stream, record.bytes, on_bytes):
                digest.update(chunk)
                crc = zlib.crc32(chunk, crc)
            position = record.start + record.bytes
            if record.crc not in (0, crc):
                message = f"Its record {record.name} has the CRC-32 {crc:08x} and was saved with {record.crc:08x}."
                raise BadInput(message, reason="ChecksumMismatch", file=str(path), hint=AGAIN)
        rest = path.stat().st_size - position
        for chunk in _chunks(stream, rest, on_bytes):
            digest.update(chunk)
    return FileDigest(bytes=position + rest, sha256=digest.hexdigest())


def _chunks(stream: BinaryIO, size: int, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    while size > 0 and (chunk := stream.read(min(size, CHUNK_BYTES))):
        size -= len(chunk)
        HEART.beat()
        on_bytes(len(chunk))
        yield chunk


def _record(stream: BinaryIO, member: zipfile.ZipInfo) -> Record:
    """Return where a member's values begin: behind its local header, whose last two fields are its names' lengths."""
    stream.seek(member.header_offset)
    header = stream.read(_LOCAL_HEADER_BYTES)
    if header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"{member.filename} does not begin where the directory says")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = member.header_offset + _LOCAL_HEADER_BYTES + lengths
    return Record(member.filename, start, member.file_size, member.CRC)


def _no_archive(path: Path, first: bytes, error: Exception) -> BadInput:
    size = path.stat().st_size
    if first == b"PK":
        message = f"The file is cut or damaged: its {size} bytes are no whole zip archive ({error})."
        return BadInput(message, file=str(path), hint=AGAIN)
    if first[:1] == b"\x80":
        message = "The file was saved by a torch before 1.6, in a form that cannot be mapped into memory."
        hint = "Save it anew: torch.save(torch.load(path, weights_only=True), new_path)."
        return BadInput(message, file=str(path), hint=hint)
    message = f"The file ({size} bytes) is not in the format that torch.save writes."
    return BadInput(message, file=str(path), hint=AGAIN)


def _refused(path: Path, error: Exception) -> BadInput:
    """Return what to say for a failed torch.load; its own message tells people to run the code."""
    text = str(error)
    if wanted := re.search(r"GLOBAL:? ([\w.]+)", text) or re.search(r"function ([\w.]+)", text):
        message = f"The pickle holds more than tensors: it asks for {wanted.group(1)}."
        return BadInput(message, reason="UnsafePickle", file=str(path), hint=NEVER_RUN)
    reason = next((line for line in text.splitlines()[1:] if "rror" in line), text.split("\n", 1)[0])
    return BadInput(f"The file cannot be read: {reason.strip()[:300]}", file=str(path), hint=f"{AGAIN} {NEVER_RUN}")
