"""PersistentVolumeClaims, asked for by name and remembered for a moment: watching every claim of users is not ours."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from herdsman.core.world import VolumeFacts
from herdsman.kube.errors import NotFound
from herdsman.kube.facts import volume_facts
from herdsman.kube.port import Api
from herdsman.kube.trimming import Body, trimmed

BOUND_SECONDS = 60.0
"""A bound claim hardly ever changes."""
OTHER_SECONDS = 3.0
"""One that is missing or not bound is what somebody waits for."""


@dataclass(frozen=True)
class _Known:
    body: Body | None
    facts: VolumeFacts | None
    until: float


class Claims:
    """Facts of claims by namespace and name."""

    def __init__(self, api: Api, clock: Callable[[], float] | None = None) -> None:
        self._api = api
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._known: dict[tuple[str, str], _Known] = {}

    async def facts(self, namespace: str, names: Iterable[str]) -> dict[str, VolumeFacts]:
        """Return the claims of these names that exist."""
        found = {name: await self._ask(namespace, name) for name in names}
        return {name: facts for name, facts in found.items() if facts is not None}

    def put(self, body: Body) -> None:
        """Remember a claim as the API server just returned it."""
        metadata, facts = body["metadata"], volume_facts(body)
        seconds = BOUND_SECONDS if facts.bound else OTHER_SECONDS
        self._known[metadata["namespace"], metadata["name"]] = _Known(trimmed(body), facts, self._clock() + seconds)

    def body(self, namespace: str, name: str) -> Body | None:
        """Return a claim as it was last read; None where it was not there, or never asked for."""
        known = self._known.get((namespace, name))
        return known.body if known is not None else None

    async def _ask(self, namespace: str, name: str) -> VolumeFacts | None:
        known = self._known.get((namespace, name))
        if known is not None and self._clock() < known.until:
            return known.facts
        try:
            self.put(await self._api.get("PersistentVolumeClaim", namespace, name))
        except NotFound:
            self._known[namespace, name] = _Known(None, None, self._clock() + OTHER_SECONDS)
        return self._known[namespace, name].facts
