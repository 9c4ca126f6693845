"""What this machine has: cores and GPUs, found without torch."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_GPU_DEVICE = re.compile(r"nvidia\d+")


@dataclass(frozen=True)
class Machine:
    """The cores and GPUs that runs may take."""

    cores: int
    gpus: int = 0


def this_machine(cores: int | None = None) -> Machine:
    """Return the cores this process may use, or as many as are given, and the GPUs that are there."""
    return Machine(cores or _cores(), _gpus(Path("/dev")))


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _gpus(devices: Path) -> int:
    return sum(1 for entry in devices.iterdir() if _GPU_DEVICE.fullmatch(entry.name))
