"""Memory of the host that this process may still take: what the kernel has, and what its control groups leave."""

from collections.abc import Iterator
from pathlib import Path

UNLIMITED = 1 << 60
"""Version 1 of the control groups writes no limit as a number above this."""


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that may still be allocated without another's being taken; None where nothing tells."""
    known = [value for value in (_of_the_kernel(root), *_of_the_groups(root)) if value is not None]
    return max(0, min(known)) if known else None


def _of_the_kernel(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _of_the_groups(root: Path) -> Iterator[int | None]:
    """Yield what this process's group and those around it leave; a container sees its own group as the root."""
    unified, legacy = root / "sys/fs/cgroup", root / "sys/fs/cgroup/memory"
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            for group in _upwards(unified, path):
                yield _left(group, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            for group in _upwards(legacy, path):
                yield _left(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    group = mount / path.strip("/")
    while group != mount:
        yield group
        group = group.parent
    yield mount


def _left(group: Path, limit_file: str, usage_file: str, cache: str) -> int | None:
    """Return the limit less the use; the page cache that was not used lately gives way, so it does not count."""
    limit, usage = _number(group / limit_file), _number(group / usage_file)
    if limit is None or usage is None or limit > UNLIMITED:
        return None
    cached = (line.split() for line in _lines(group / "memory.stat"))
    idle = next((int(words[1]) for words in cached if len(words) == 2 and words[0] == cache), 0)
    return limit - max(0, usage - idle)


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
