"""The way from the start of the process to the first answer: its phases, measured, and whether memory suffices."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from herdsman_server.metrics import ServerMetrics
from herdsman_trainer.errors import Temporary

Phase = Literal["import", "open", "load", "compile", "first_token", "adapters"]
"""Python's packages, the model's files and their checks, the weights, the passes that are recorded on a GPU, a first
answer, and the adapters that are there from the start.
"""
OUT_OF_MEMORY = "OutOfMemory"
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says what a container may use: version 2 and version 1."""


class Startup:
    """Seconds of each phase, as metrics and as words."""

    def __init__(self, metrics: ServerMetrics | None = None) -> None:
        self._metrics = metrics
        self.seconds: dict[Phase, float] = {}

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Measure a part of a phase; parts of the same phase add up."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began
            if self._metrics is not None:
                self._metrics.startup_seconds.labels(name).set(self.seconds[name])

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {seconds:.1f} s" for name, seconds in self.seconds.items())


def memory_limit() -> int:
    """Return the bytes that this process may use at most: the container's limit, or else the machine's memory."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in CGROUP_LIMITS:
        try:
            text = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def check_memory(needed: int) -> None:
    """Raise Temporary, reason OutOfMemory, where weights of so many bytes cannot fit, before they are loaded."""
    limit = memory_limit()
    if needed > limit:
        gib = 2**30
        message = f"The weights take {needed / gib:.1f} GiB of memory and {limit / gib:.1f} GiB is all there is."
        hint = "Raise compute.resources.memory, or serve a GGUF file, whose weights are smaller."
        raise Temporary(message, reason=OUT_OF_MEMORY, hint=hint)


def told(error: BaseException) -> BaseException:
    """Return the error as one with a reason where memory ran out: Python's, a GPU's, or that of PyTorch's allocator."""
    by_torch = isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    )
    if not by_torch and not isinstance(error, MemoryError):
        return error
    hint = "Give it more memory or a larger GPU, lower limits.maxTokens, or serve a smaller model."
    return Temporary(f"Out of memory: {error}", reason=OUT_OF_MEMORY, hint=hint)
