"""Work beside the main line of a pass: gradients of LoRA, which nothing waits for until a block ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Aside:
    """A second stream on a GPU, where kernels fill what the large products leave idle; on the CPU, the main line."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._held: list[Any] = []

    @contextmanager
    def __call__(self, *held: torch.Tensor | None) -> Iterator[None]:
        """Queue the work beside the main line, after what is queued there; `held` stays in memory until `join`."""
        if self._stream is None:
            yield
            return
        self._held += held
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Let the main line wait for all of it."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
            self._held.clear()
