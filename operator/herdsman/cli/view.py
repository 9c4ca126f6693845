"""What a run is told to: something that listens while it is open."""

from typing import Protocol, Self

from herdsman.local.follow import Listener


class View(Listener, Protocol):
    """A listener that is open while a run is followed."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...
