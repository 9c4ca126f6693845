"""The adapters that are resident: loaded and unloaded while answers go on."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from herdsman_server.batching.lora import ResidentAdapter, stack
from herdsman_server.batching.passes import Passes


class AdapterGoneError(Exception):
    """An adapter was unloaded between the request and its turn."""


class Adapters:
    """Adapters by name. What is unloaded gets no new requests, and goes when the last of its answers is complete."""

    def __init__(self, passes: Passes, asked: Callable[[Callable[[], Any]], Any]) -> None:
        self._passes = passes
        self._asked = asked
        self._changed = threading.Condition()
        self._places: list[ResidentAdapter | None] = []
        self._numbers: dict[str, int] = {}
        self._users: dict[int, int] = {}

    @property
    def names(self) -> list[str]:
        """What requests may choose."""
        with self._changed:
            return sorted(self._numbers)

    @contextmanager
    def used(self, name: str | None) -> Iterator[int]:
        """Keep an adapter for an answer; yields its number, 0 for none. Raises AdapterGoneError."""
        if name is None:
            yield 0
            return
        with self._changed:
            if name not in self._numbers:
                raise AdapterGoneError(name)
            number = self._numbers[name]
            self._users[number] = self._users.get(number, 0) + 1
        try:
            yield number
        finally:
            with self._changed:
                self._users[number] -= 1
                self._changed.notify_all()

    def load(self, adapter: ResidentAdapter) -> None:
        """Make an adapter known; one of this name must have been unloaded before."""
        with self._changed:
            assert adapter.name not in self._numbers, "names are unique"
            if None in self._places:
                place = self._places.index(None)
                self._places[place] = adapter
            else:
                place = len(self._places)
                self._places.append(adapter)
        self._stack()
        with self._changed:
            self._numbers[adapter.name] = place + 1

    def unload(self, name: str) -> None:
        """Forget an adapter, once its answers are complete."""
        with self._changed:
            number = self._numbers.pop(name)
            self._changed.wait_for(lambda: not self._users.get(number))
            self._places[number - 1] = None
            while self._places and self._places[-1] is None:
                self._places.pop()
        self._stack()

    def _stack(self) -> None:
        """Put the matrices side by side beside the running answers, and change over between two passes."""
        model = self._passes.model
        made = stack(self._places, model.linear_shapes, len(model.layers), model.embedding)

        def change_over() -> None:
            model.lora = made
            if self._passes.graphs is not None:
                self._passes.graphs.forget()

        self._asked(change_over)
