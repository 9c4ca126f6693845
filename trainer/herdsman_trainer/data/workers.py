"""Worker processes: pieces go out as workers become free, and results come back in the order of the pieces.

A worker is a process of its own, because encoding and the Python around it hold the interpreter. It lives as long as
the connection to it: whatever ends the process that started it, the worker reads the end and goes.
"""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from multiprocessing.connection import Connection, Pipe, wait
from types import TracebackType
from typing import Any, TypeVar

from herdsman_trainer.errors import Temporary

P = TypeVar("P")
R = TypeVar("R")
T = TypeVar("T")

_WORTH_WORKERS = 3
"""Fewer pieces are done before a worker would have started."""
_AHEAD = 2
"""Pieces for each worker that may be under way or wait for their turn, so that memory is bounded."""
_SIGKILL = -9


def in_order(pieces: Iterator[tuple[T, P]], encode: Callable[[P], R], workers: int) -> Iterator[tuple[T, R]]:
    """Yield (tag, encode(piece)) for each (tag, piece), in their order, whatever the number of workers.

    `encode` is pickled once for each worker. What it raises, or what reading the pieces raises, is raised here in the
    turn of its piece, so the first fault is the same however the work is shared; Temporary where a worker was killed.
    """
    pieces = _caught(pieces)
    first = list(islice(pieces, _WORTH_WORKERS))
    pieces = chain(first, pieces)
    if workers <= 1 or len(first) < _WORTH_WORKERS:
        for tag, piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            yield tag, encode(piece)
        return
    with _Pool(encode, workers) as pool:
        yield from pool.map(pieces)


def _caught(pieces: Iterator[tuple[T, Any]]) -> Iterator[tuple[Any, Any]]:
    """Yield the pieces, and what reading the next one raises as the last of them."""
    while True:
        try:
            following = next(pieces, None)
        except Exception as error:  # noqa: BLE001 - it is raised in its turn
            yield None, error
            return
        if following is None:
            return
        yield following


class _Worker:
    """One process and the connection to it."""

    def __init__(self, encode: Callable[[Any], Any]) -> None:
        self.connection, theirs = Pipe()
        command = [sys.executable, "-m", "herdsman_trainer.data.worker", str(theirs.fileno())]
        # Each works on one CPU; libraries with threads of their own would only be in each other's way.
        alone = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env={**os.environ, **alone})
        theirs.close()
        self.connection.send(encode)

    def receive(self) -> Any:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            raise self.failure() from None

    def send(self, number: int, piece: Any) -> None:
        try:
            self.connection.send((number, piece))
        except OSError:
            raise self.failure() from None

    def failure(self) -> Temporary:
        code = self.process.wait()
        if code == _SIGKILL:
            message = "A process that tokenises was killed, most likely for want of memory."
            return Temporary(message, reason="OutOfMemory", hint="Raise compute.resources.memory.")
        return Temporary(f"A process that tokenises ended with exit code {code}; the log may tell why.")


class _Pool:
    def __init__(self, encode: Callable[[Any], Any], count: int) -> None:
        self._workers: list[_Worker] = []
        self._encode = encode
        self._count = count

    def __enter__(self) -> "_Pool":
        try:
            for _ in range(self._count):
                self._workers.append(_Worker(self._encode))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.kill()
            worker.process.wait()

    def map(self, pieces: Iterator[tuple[T, Any]]) -> Iterator[tuple[T, Any]]:
        """Yield the results in order, at most `_AHEAD` pieces a worker ahead of what was taken."""
        tags: deque[T] = deque()
        results: dict[int, tuple[bool, Any]] = {}
        idle = list(self._workers)
        busy: dict[Connection[Any, Any], _Worker] = {}
        sent = taken = 0
        more = True
        while more or busy or results:
            while more and idle and sent - taken < _AHEAD * self._count:
                following = next(pieces, None)
                if following is None:
                    more = False
                    break
                tags.append(following[0])
                if isinstance(following[1], Exception):
                    results[sent] = False, following[1]
                    sent += 1
                    continue
                worker = idle.pop()
                worker.send(sent, following[1])
                busy[worker.connection] = worker
                sent += 1
            if taken in results:
                sound, value = results.pop(taken)
                if not sound:
                    raise value
                taken += 1
                yield tags.popleft(), value
                continue
            for ready in wait(list(busy)) if busy else ():
                assert isinstance(ready, Connection)
                worker = busy.pop(ready)
                number, sound, value = worker.receive()
                results[number] = sound, value
                idle.append(worker)
