"""Reads safetensors: one file, or a Hugging Face model directory with one file or an index and shards."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import torch
from safetensors import safe_open

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.reading_ahead import Place
from herdsman_trainer.weights.tensor_spec import DTYPES, TensorSpec

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format."""


def read_json_object(path: Path, *, remedy: str = "") -> dict[str, Any]:
    """Read a JSON object; raises BadInput with file and line where it is missing, malformed or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput("The file is missing.", file=str(path), hint=remedy) from None
    except UnicodeDecodeError:
        raise BadInput("The file is not UTF-8 text.", file=str(path), hint=remedy) from None
    except json.JSONDecodeError as error:
        raise BadInput(
            f"The file is not valid JSON: {error.msg}.", file=str(path), line=error.lineno, hint=remedy
        ) from None
    if not isinstance(value, dict):
        raise BadInput("The file must hold one JSON object.", file=str(path), hint=remedy)
    return value


def read_header(path: Path) -> dict[str, TensorSpec]:
    """Return the tensors a safetensors file declares, in the order of their data.

    Raises BadInput for a file that is missing, cut, longer than declared, or not safetensors at all.
    """
    again = "Copy the file again and compare its SHA-256 with the source."
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            head = stream.read(length) if 0 < length <= MAX_HEADER_BYTES else b""
    except FileNotFoundError:
        raise BadInput("The weight file is missing.", file=str(path), hint=again) from None
    if size < 10 or not head.lstrip().startswith(b"{"):
        raise BadInput("The file is not in the safetensors format.", file=str(path), hint=again)
    if len(head) < length:
        raise BadInput(f"The file is cut: {size} bytes end inside its header.", file=str(path), hint=again)
    specs: list[tuple[int, TensorSpec]] = []
    end = 0
    try:
        for name, entry in json.loads(head).items():
            if name == "__metadata__":
                continue
            start, stop = entry["data_offsets"]
            specs.append((start, TensorSpec(name, DTYPES[entry["dtype"]], tuple(entry["shape"]))))
            end = max(end, stop)
    except KeyError as error:
        message = f"A tensor has the type {error}, which is not supported."
        raise BadInput(message, file=str(path), hint="Save the weights as float32, bfloat16 or float16.") from None
    except (ValueError, TypeError, AttributeError):
        raise BadInput("The header of the safetensors file is damaged.", file=str(path), hint=again) from None
    declared = 8 + length + end
    if size != declared:
        fault = "cut" if size < declared else "longer than its header says"
        message = f"The file is {fault}: it has {size} bytes and its header declares {declared}."
        raise BadInput(message, file=str(path), hint=again)
    return {spec.name: spec for _, spec in sorted(specs, key=lambda item: item[0])}


@dataclass
class TensorFiles:
    """The tensors of one or several safetensors files, mapped into memory and read when asked for."""

    specs: Mapping[str, TensorSpec]
    location: Mapping[str, Path]
    """The file of each tensor."""

    def __post_init__(self) -> None:
        self._open: dict[Path, Any] = {}
        self._places: dict[Path, Mapping[str, Place]] = {}

    @property
    def files(self) -> list[Path]:
        """The files, each once, in order of name."""
        return sorted(set(self.location.values()))

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor as it is stored; it is backed by the file, so it must not be written to."""
        path = self.location[name]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        tensor: torch.Tensor = self._open[path].get_tensor(name)
        return tensor

    def place(self, name: str) -> Place | None:
        """Return where a tensor lies, None where that is not known."""
        path = self.location[name]
        if path not in self._places:
            self._places[path] = _places(path)
        return self._places[path][name]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every tensor with its name, one at a time."""
        for name in self.specs:
            yield name, self.tensor(name)

    def close(self) -> None:
        """Forget the open files; the mappings end with the last tensor that uses them."""
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _places(path: Path) -> dict[str, Place]:
    """Return where the tensors of a safetensors file lie: side by side, up to its end."""
    specs = read_header(path)
    start = path.stat().st_size - sum(spec.nbytes for spec in specs.values())
    places = {}
    for name, spec in specs.items():
        places[name] = Place(path, start, spec.nbytes)
        start += spec.nbytes
    return places


def open_safetensors(path: Path) -> TensorFiles:
    """Open one safetensors file; raises BadInput as read_header does."""
    specs = read_header(path)
    return TensorFiles(MappingProxyType(specs), MappingProxyType(dict.fromkeys(specs, path)))


def open_model_weights(directory: Path) -> TensorFiles:
    """Open the weights of a Hugging Face model directory: `model.safetensors`, or the index and its shards.

    Raises BadInput, naming the file, where a shard is missing, cut or lacks a tensor the index places in it.
    """
    index = directory / INDEX_FILE
    if not index.is_file():
        single = directory / SINGLE_FILE
        if single.is_file():
            return open_safetensors(single)
        raise BadInput(_nothing_to_read(directory), file=str(directory), hint=_remedy_for(directory))
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput('The index has no "weight_map".', file=str(index), hint="Copy the index from the source again.")
    for name in sorted(set(weight_map.values())):
        if not isinstance(name, str) or Path(name).name != name:
            raise BadInput(f"The index names the shard {name!r}, which is no plain file name.", file=str(index))
        if not (directory / name).is_file():
            message = f"The shard {name} is missing, which {INDEX_FILE} names."
            raise BadInput(message, file=str(directory / name), hint="Copy the missing shard from the source.")
    headers = {name: read_header(directory / name) for name in sorted(set(weight_map.values()))}
    for tensor, name in weight_map.items():
        if tensor not in headers[name]:
            message = f"The shard lacks {tensor}, which {INDEX_FILE} places in it."
            raise BadInput(message, file=str(directory / name), hint="Index and shards are of different models.")
    # The order of the files' data, so that reading everything reads every file front to back.
    specs = {
        tensor: spec for name, header in headers.items() for tensor, spec in header.items() if tensor in weight_map
    }
    location = {tensor: directory / weight_map[tensor] for tensor in specs}
    return TensorFiles(MappingProxyType(specs), MappingProxyType(location))


def _nothing_to_read(directory: Path) -> str:
    if not directory.is_dir():
        return "The model directory does not exist."
    others = sorted(path.name for pattern in ("*.bin", "*.pth", "*.gguf") for path in directory.glob(pattern))
    found = f"; it has {', '.join(others[:3])}" if others else ""
    return f"The directory has neither {SINGLE_FILE} nor {INDEX_FILE}{found}."


def _remedy_for(directory: Path) -> str:
    pickled = ("pytorch_model*.bin", "consolidated.*.pth")
    if directory.is_dir() and any(path for pattern in pickled for path in directory.glob(pattern)):
        return "Bring the model in with a ModelImport, which makes safetensors of such files."
    if directory.is_dir() and any(directory.glob("*.gguf")):
        return "Bring GGUF files in with a ModelImport."
    return "Name a Hugging Face model directory with safetensors weights."
