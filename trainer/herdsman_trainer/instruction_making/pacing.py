"""When the next request may begin: evenly over the minute, and within the tokens of a minute."""

BURST_SECONDS = 10.0
"""Tokens that were not used are kept for so long."""


class Pace:
    """Limits of requests and tokens per minute; None sets none. Times are seconds of any clock.

    Requests are begun at least 60 / n seconds apart, so that no minute, wherever it begins, has more than n. Tokens are
    a debt that time pays off: a request of any size may begin when nothing is owed.
    """

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._interval = 60 / requests_per_minute if requests_per_minute is not None else 0.0
        self._rate = tokens_per_minute / 60 if tokens_per_minute is not None else None
        self._next = -float("inf")
        self._level = 0.0
        self._seen: float | None = None

    def ready_at(self, now: float) -> float:
        """Return when the next request may begin; not after `now` where it may at once."""
        self._refill(now)
        if self._rate is None or self._level >= 0:
            return max(now, self._next)
        return max(self._next, now - self._level / self._rate)

    def begin(self, now: float, tokens: float) -> None:
        """A request of about so many tokens begins."""
        self._refill(now)
        self._next = now + self._interval
        self._level -= tokens

    def settle(self, expected: float, actual: float) -> None:
        """It is known how many tokens a request had."""
        self._level += expected - actual

    def hold(self, until: float) -> None:
        """Nothing may begin before this time: the endpoint asks for it."""
        self._next = max(self._next, until)

    def _refill(self, now: float) -> None:
        if self._rate is not None and self._seen is not None:
            self._level = min(self._level + (now - self._seen) * self._rate, self._rate * BURST_SECONDS)
        self._seen = now
