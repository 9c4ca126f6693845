"""Lanes: threads that take work in order, a few pieces ahead of which nobody runs."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """A thread that does what it is given, one piece after the other, until one fails.

    The work should leave the interpreter alone most of the time (products, digests, reading and writing do), so that
    lanes run side by side.
    """

    def __init__(self, name: str, depth: int) -> None:
        """Let at most `depth` pieces of work wait or be under way."""
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: deque[Future[Any]] = deque()
        self._depth = depth
        self._failure: BaseException | None = None

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Hand over a piece of work, waiting while too much lies there; raises what earlier work failed with."""
        while len(self._waiting) >= self._depth:
            self._waiting.popleft().result()
        future = self._executor.submit(self._do, partial(work, *args, **kwargs))
        self._waiting.append(future)
        return future

    def drain(self) -> None:
        """Wait until all is done; raises what it failed with."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Wait for the work under way, drop what has not begun, and end the thread."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _do(self, work: Callable[[], T]) -> T:
        # What comes after a failed piece would be written in its place.
        if self._failure is not None:
            raise self._failure
        try:
            return work()
        except BaseException as error:
            self._failure = error
            raise
