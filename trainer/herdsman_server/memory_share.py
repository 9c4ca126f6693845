"""How much memory conversations get: what the weights leave, and no more than they could use."""

import resource
from pathlib import Path

import torch

from herdsman_server.startup import memory_limit

CPU_SHARE = 0.5
"""Of what the weights leave of a container's memory."""
GPU_RESERVE = 0.06
"""Of a GPU, for what a pass computes with and for the recorded passes; never less than a gigabyte."""
GPU_ADAPTERS = 0.06
"""Of a GPU, for adapters that are loaded later."""
GIB = 1 << 30


def room(device: torch.device, *, hot: bool = False) -> int:
    """Return the bytes that keys and values may take on a device, now that the weights are there.

    With `hot` adapters come later, which need some as well.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        adapters = int(GPU_ADAPTERS * total) if hot else 0
        return max(0, free - max(GIB, int(GPU_RESERVE * total)) - adapters)
    return max(0, int(CPU_SHARE * (memory_limit() - _resident())))


def _resident() -> int:
    """Return what this process has in memory."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
