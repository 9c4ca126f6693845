"""Dropout masks that follow from the place of a value in the data alone.

A value is kept or dropped by a hash of the seed, the place of its sequence in the training stream, its position, the
site in the model and its column. So a mask is the same whatever the number of processes, the micro-batch or the device,
is made again in the backward pass instead of being stored, and leaves no generator state to be saved.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

STEPS = 1 << 16
"""Probabilities are multiples of 1 / STEPS: one hash decides over two neighbouring columns, 16 bits each."""
COLUMN_FACTOR = -1640531535  # 0x9E3779B1, 2^32 / golden ratio
MIX_FACTORS = (-2048144789, -1028477387)  # 0x85EBCA6B, 0xC2B2AE35: those of MurmurHash3's finaliser
_SIGN_BITS = -2147450880  # 0x80008000

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Dropout:
    """What is dropped at one site of the model."""

    keys: torch.Tensor
    """A hash of each token's place, shape (tokens), int32."""
    site: int
    """The hash of the site, a signed 32-bit number."""
    threshold: int
    """Columns whose 16 bits are below it are dropped."""

    @property
    def scale(self) -> float:
        """What kept values are multiplied by, so that the mean stays."""
        return STEPS / (STEPS - self.threshold)

    def kept(self, columns: int) -> torch.Tensor:
        """Return which values stay, shape (tokens, columns), bool."""
        pairs = -(-columns // 2)
        numbers = torch.arange(pairs, dtype=torch.int32, device=self.keys.device)
        hashed = self.keys[:, None] ^ (numbers * COLUMN_FACTOR + self.site)[None]
        hashed *= MIX_FACTORS[0]
        hashed ^= (hashed >> 13) & 0x7FFFF
        hashed *= MIX_FACTORS[1]
        hashed ^= (hashed >> 16) & 0xFFFF
        hashed ^= _SIGN_BITS  # so that signed halves compare like unsigned ones
        return hashed.view(torch.int16)[:, :columns] >= self.threshold - STEPS // 2

    def apply(self, values: torch.Tensor) -> torch.Tensor:
        """Return (tokens, columns) values with dropped ones zero and the others scaled."""
        return values * (self.kept(values.shape[1]) * self.scale).to(values.dtype)


class Places:
    """Where the tokens stand that are computed now: what transformers' modules are told beside their inputs."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.keys: torch.Tensor | None = None

    def take(self, places: npt.NDArray[np.int64] | None, width: int, device: torch.device) -> None:
        """Stand at rows of `width` tokens, whose places are given; without any nothing is dropped."""
        rows = [] if places is None else [token_keys(self._seed, int(place), width) for place in places]
        self.keys = torch.from_numpy(np.concatenate(rows)).to(device) if rows else None


class PlacedDropout(torch.nn.Module):
    """Dropout of (rows, width, columns) values by their places, for modules that are computed by PyTorch itself."""

    def __init__(self, places: Places, site: int, probability: float) -> None:
        super().__init__()
        self._places = places
        self._site = site
        self._threshold = threshold_of(probability)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop values while training."""
        if not self.training or not self._threshold or self._places.keys is None:
            return x
        return Dropout(self._places.keys, self._site, self._threshold).apply(x.flatten(0, -2)).view(x.shape)


def threshold_of(probability: float) -> int:
    """Return the threshold for a probability from 0 to below 1."""
    return min(round(probability * STEPS), STEPS - 1)


def site_hash(layer: int, site: int) -> int:
    """Return the hash of a site of a layer."""
    mixed = int(_mixed(np.array([(layer << 8) + site + 1], np.uint64))[0] >> np.uint64(32))
    return mixed - (1 << 32) if mixed >= 1 << 31 else mixed


def token_keys(seed: int, place: int, length: int) -> npt.NDArray[np.int32]:
    """Return a hash of each token of the sequence at `place` in the training stream."""
    with np.errstate(over="ignore"):
        row = _mixed(np.array([seed], np.uint64) * _GOLDEN + np.array([place], np.uint64))
        return (_mixed(row + np.arange(length, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32).view(np.int32)


def _mixed(values: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014)."""
    with np.errstate(over="ignore"):
        values = values + _GOLDEN
        values = (values ^ (values >> np.uint64(30))) * _FIRST
        values = (values ^ (values >> np.uint64(27))) * _SECOND
        result: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(31))
        return result
