"""Leader election by a Lease, for a second replica that waits: at most one operator works at any time.

The holder renews every two seconds and gives up ten seconds after its last success; others take over only when they
have seen no renewal for fifteen seconds by their own clocks, so that clocks need not agree.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from herdsman.kube.errors import ApiError, Conflict, NotFound, Unreachable
from herdsman.kube.port import Api

LEASE_SECONDS = 15.0
RENEW_SECONDS = 10.0
RETRY_SECONDS = 2.0
_log = logging.getLogger("herdsman.lease")


class Lost(Exception):
    """The lease could not be renewed in time: another replica may work now."""


class Lease:
    """One Lease object, held or waited for under an identity."""

    def __init__(
        self, api: Api, namespace: str, name: str, identity: str, clock: Callable[[], float] | None = None
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._seen: tuple[object, float] | None = None

    async def acquire(self, standing_by: Callable[[], None] = lambda: None) -> None:
        """Wait until the lease is ours; says so while another replica is known to hold it."""
        while not await self._try():
            if self._seen is not None:
                standing_by()
            await asyncio.sleep(RETRY_SECONDS)
        _log.info("%s holds the lease %s/%s", self._identity, self._namespace, self._name)

    async def keep(self) -> None:
        """Renew for ever; raises Lost once the lease may be another's."""
        renewed = self._clock()
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            if await self._try():
                renewed = self._clock()
            elif self._clock() - renewed > RENEW_SECONDS:
                raise Lost(f"the lease {self._namespace}/{self._name} was not renewed for {RENEW_SECONDS:.0f} s")

    async def release(self) -> None:
        """Let the next replica take over at once."""
        try:
            await self._api.merge("Lease", self._namespace, self._name, {"spec": {"holderIdentity": ""}})
        except (ApiError, Unreachable) as error:
            _log.debug("the lease was not released: %s", error)

    async def _try(self) -> bool:
        try:
            async with asyncio.timeout(RENEW_SECONDS / 2):
                return await self._take_or_renew()
        except Conflict:
            return False
        except (ApiError, Unreachable, TimeoutError) as error:
            _log.warning("the lease %s/%s: %s", self._namespace, self._name, error)
            return False

    async def _take_or_renew(self) -> bool:
        try:
            body = await self._api.get("Lease", self._namespace, self._name)
        except NotFound:
            metadata = {"namespace": self._namespace, "name": self._name}
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}
            await self._api.create({**lease, "spec": self._spec(transitions=0)})
            return True
        spec = body.get("spec") or {}
        holder, now = spec.get("holderIdentity"), self._clock()
        if holder and holder != self._identity:
            signs = holder, spec.get("renewTime")
            if self._seen is None or self._seen[0] != signs:
                self._seen = signs, now
            if now - self._seen[1] <= LEASE_SECONDS:
                return False
        transitions = (spec.get("leaseTransitions") or 0) + (holder != self._identity)
        version = {"resourceVersion": body["metadata"]["resourceVersion"]}
        patch = {"metadata": version, "spec": self._spec(transitions, acquired=holder != self._identity)}
        await self._api.merge("Lease", self._namespace, self._name, patch)
        return True

    def _spec(self, transitions: int, *, acquired: bool = True) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": int(LEASE_SECONDS),
            "leaseTransitions": transitions,
            "renewTime": now,
            **({"acquireTime": now} if acquired else {}),
        }
