"""What an activator is told when it is started."""

from dataclasses import dataclass, field

from herdsman.api_keys import ApiKeys


@dataclass(frozen=True)
class Settings:
    """Where it listens, whom it asks, and how long and how many it lets wait."""

    backend: str
    """The URL of the replicas' Service, without a path."""
    model: str
    """The name clients ask for."""
    hold_seconds: float
    """Seconds a request waits for a replica at most."""
    hold_requests: int
    """Requests that may wait at once."""
    origins: frozenset[str] = frozenset()
    """Web pages of these origins may use the API from a browser."""
    keys: ApiKeys = field(default_factory=ApiKeys)
    """Any of these opens the API, and so may wake it."""
