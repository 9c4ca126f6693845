"""How many processes may work side by side here: the CPUs and the memory that this container was given."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

THREADS_VARIABLE = "HERDSMAN_THREADS"
"""What `herdsman run` has granted to the processes of this pod."""
CGROUP = Path("/sys/fs/cgroup")
MOST_WORKERS = 32
WORKER_BYTES = 256 * 2**20
"""What a worker takes at most, with its interpreter, a tokenizer and a piece of text."""


def usable_cpus(environment: Mapping[str, str] = os.environ, cgroup: Path = CGROUP) -> int:
    """Return the CPUs this process may keep busy: those it is bound to, within the limit of its cgroup (rounded up) and
    what was granted to it.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    bounds = [len(affinity(0)) if affinity else os.cpu_count() or 1]
    quota = _quota(cgroup)
    if quota is not None:
        bounds.append(math.ceil(quota))
    granted = environment.get(THREADS_VARIABLE, "")
    if granted.isdigit():
        bounds.append(int(granted))
    return max(1, min(bounds))


def worker_count(environment: Mapping[str, str] = os.environ, cgroup: Path = CGROUP) -> int:
    """Return how many workers to start: one a CPU, within half of the memory that the cgroup allows."""
    limit = _first_number(cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes")
    by_memory = MOST_WORKERS if limit is None else int(limit / 2 / WORKER_BYTES)
    return max(1, min(usable_cpus(environment, cgroup), by_memory, MOST_WORKERS))


def _quota(cgroup: Path) -> float | None:
    """Return the CPUs a cgroup may use, of version 2 or 1; None without a limit."""
    words = _words(cgroup / "cpu.max")
    if len(words) == 2:
        return None if words[0] == "max" else int(words[0]) / int(words[1])
    quota = _first_number(cgroup / "cpu" / "cpu.cfs_quota_us")
    period = _first_number(cgroup / "cpu" / "cpu.cfs_period_us")
    return quota / period if quota is not None and quota > 0 and period else None


def _first_number(*paths: Path) -> int | None:
    for path in paths:
        words = _words(path)
        if words and words[0].lstrip("-").isdigit():
            return int(words[0])
    return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []
