"""The bytes of a file of torch.save around the values of its tensors, so that these can be streamed into it.

torch itself writes them: it saves tensors without memory and leaves their values out (torch.serialization.skip_data).
What it leaves open besides are the check sums of the values, which are set here, so that every reader of zip files
takes the file for whole.
"""

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

DESCRIPTOR = b"PK\x07\x08"
"""What stands after the bytes of an entry: this, the CRC-32 of the bytes, and their number twice."""
ENTRY = b"PK\x01\x02"
"""Begins an entry of the directory at the end of the file."""
LONG_SIZE = 0xFFFFFFFF
"""Sizes from here on take 8 bytes instead of 4."""


@dataclass(frozen=True)
class PthLayout:
    """A file: what stands before each tensor's values, the values, and what stands after the last."""

    head: bytes
    sizes: Sequence[int]
    """Bytes of each value, in order."""
    between: Sequence[bytes]
    """What stands after each value, beginning with its check sum; after the last one the end of the file."""

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return len(self.head) + sum(self.sizes) + sum(map(len, self.between))

    def position(self, number: int) -> int:
        """Return where a value begins."""
        return len(self.head) + sum(self.sizes[:number]) + sum(map(len, self.between[:number]))

    def after(self, number: int, check_sum: int) -> bytes:
        """Return what stands after a value; after the last one only its own check sum."""
        own = self.between[number] if number + 1 < len(self.sizes) else self.between[number][: self._width(number)]
        return DESCRIPTOR + struct.pack("<I", check_sum) + own[8:]

    def tail(self, check_sums: Sequence[int]) -> bytes:
        """Return the end of the file, with the check sums of all values in its directory."""
        end = bytearray(self.between[-1][self._width(len(self.sizes) - 1) :])
        at = end.index(ENTRY)
        while end[at : at + 4] == ENTRY:
            name, extra, comment = struct.unpack_from("<HHH", end, at + 28)
            if found := re.search(rb"/data/(\d+)$", end[at + 46 : at + 46 + name]):
                struct.pack_into("<I", end, at + 16, check_sums[int(found[1])])
            at += 46 + name + extra + comment
        return bytes(end)

    def _width(self, number: int) -> int:
        return 24 if self.sizes[number] >= LONG_SIZE else 16


def pth_layout(
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], shared: Mapping[str, str] | None = None
) -> PthLayout:
    """Return the layout of a file that holds a dict of these tensors, their values in this order.

    `shared` names tensors that are others once more and take no room.
    """
    recorder: Any = _Recorder()
    with FakeTensorMode(), torch.serialization.skip_data(materialize_fake_tensors=True):
        content = {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in tensors.items()}
        content |= {name: content[other] for name, other in (shared or {}).items()}
        torch.save(content, recorder)
    head, *between = [b"".join(part) for part in recorder.parts]
    if len(between) != len(tensors) or not all(part.startswith(DESCRIPTOR) for part in between):
        raise RuntimeError("this release of torch lays out its files in another way")
    return PthLayout(head, recorder.sizes, between)


class _Recorder:
    """A file that keeps what is written to it, and how much is passed over."""

    def __init__(self) -> None:
        self.parts: list[list[bytes]] = [[]]
        self.sizes: list[int] = []

    def write(self, data: bytes) -> int:
        self.parts[-1].append(bytes(data))
        return len(data)

    def seek(self, distance: int, whence: int = 0) -> None:
        if whence != 1:
            raise RuntimeError("this release of torch writes its files in another way")
        self.sizes.append(distance)
        self.parts.append([])

    def flush(self) -> None:
        pass
