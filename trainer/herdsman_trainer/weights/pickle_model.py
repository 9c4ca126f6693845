"""Opens the weights of a Hugging Face directory that were saved with torch.save: pytorch_model*.bin."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.pickle_reading import read_tensors, tensor_specs
from herdsman_trainer.weights.reading import TensorFiles, read_json_object
from herdsman_trainer.weights.tensor_spec import TensorSpec

SINGLE_BIN = "pytorch_model.bin"
BIN_INDEX = "pytorch_model.bin.index.json"
SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)$")


@dataclass
class MappedTensors(TensorFiles):
    """Tensors of checkpoints that torch has mapped into memory."""

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor as it is stored; it is backed by the file, so it must not be written to."""
        return self.tensors[name]

    def place(self, name: str) -> None:
        """Return None: torch alone knows where it lies."""


def has_bin(directory: Path) -> bool:
    """Whether a directory holds weights of this form."""
    return (directory / BIN_INDEX).is_file() or any(directory.glob("pytorch_model*.bin"))


def open_bin_weights(directory: Path) -> MappedTensors:
    """Open pytorch_model.bin, or the shards that its index names, or shards without an index.

    Raises BadInput, naming the file, where a shard is missing, is one too many, is cut or holds more than tensors
    (pickle_reading), lacks a tensor that the index places in it, or holds one that another shard holds too.
    """
    index = directory / BIN_INDEX
    if index.is_file():
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map or not all(map(_plain, weight_map.values())):
            hint = "Copy the index from the source again."
            raise BadInput('The index has no "weight_map" of plain file names.', file=str(index), hint=hint)
        names = sorted(set(weight_map.values()))
        check_strangers(directory, names, index.name)
    else:
        weight_map = {}
        names = [SINGLE_BIN] if (directory / SINGLE_BIN).is_file() else _shards(directory)
    specs: dict[str, TensorSpec] = {}
    location: dict[str, Path] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        read = read_tensors(directory / name)
        _check_index(weight_map, name, read, directory)
        if twice := sorted(read.keys() & tensors.keys()):
            message = f"{twice[0]} is in {location[twice[0]].name} too."
            raise BadInput(message, file=str(directory / name), hint="The shards are of two models: copy one whole.")
        tensors |= read
        specs |= tensor_specs(read)
        location |= dict.fromkeys(read, directory / name)
    return MappedTensors(MappingProxyType(specs), MappingProxyType(location), tensors)


def check_strangers(directory: Path, names: Sequence[str], index: str) -> None:
    """Raise BadInput where a shard lies beside those that an index names: then two models are mixed."""
    known = {match["stem"] + match["suffix"] for name in names if (match := SHARD.match(name))}
    for path in sorted(directory.iterdir()):
        match = SHARD.match(path.name)
        if match and match["stem"] + match["suffix"] in known and path.name not in names:
            message = f"The shard {path.name} is one too many: {index} does not name it."
            raise BadInput(message, file=str(path), hint="Move away what is not of this model, or copy its index too.")


def _plain(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name


def _shards(directory: Path) -> list[str]:
    """Return the shards of a directory without an index, which their names must number without a gap."""
    names = sorted(path.name for path in directory.glob("pytorch_model-*.bin"))
    matches = [match for name in names if (match := SHARD.match(name))]
    if not matches:
        hint = f"Name them {SINGLE_BIN}, or pytorch_model-00001-of-00002.bin and so on."
        raise BadInput(f"None of the .bin files is {SINGLE_BIN} or a shard.", file=str(directory), hint=hint)
    count = matches[0]["count"]
    wanted = [f"pytorch_model-{number:05d}-of-{count}.bin" for number in range(1, int(count) + 1)]
    if missing := sorted(set(wanted) - set(names)):
        message = f"The shard {missing[0]} is missing: {len(names)} of {int(count)} are there."
        raise BadInput(message, file=str(directory / missing[0]), hint="Copy the missing shard from the source.")
    check_strangers(directory, wanted, f"the number in {wanted[0]}")
    return wanted


def _check_index(weight_map: Mapping[str, str], name: str, read: Mapping[str, torch.Tensor], directory: Path) -> None:
    for tensor, shard in weight_map.items():
        if shard == name and tensor not in read:
            message = f"The shard lacks {tensor}, which {BIN_INDEX} places in it."
            raise BadInput(message, file=str(directory / name), hint="Index and shards are of different models.")
