"""The port: what a shell offers to the one story in reconcile.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.status import Status
from herdsman.core.plan_types import Manifest
from herdsman.core.world import Key, World


@dataclass(frozen=True)
class Invalid:
    """A stored resource that does not fit its model."""

    key: Key
    generation: int
    problems: tuple[str, ...]
    """One sentence per wrong field, each with the field's path."""
    status: Status | None = None


class Cluster(Protocol):
    """Where resources live and runs run: Kubernetes, or this machine."""

    def now(self) -> datetime:
        """Return the present time, in UTC."""
        ...

    async def read(self, key: Key) -> AnyResource | Invalid | None:
        """Return the resource, why it is invalid, or None when it is gone."""
        ...

    async def observe(self, resource: AnyResource) -> World:
        """Return one snapshot of its children and of what it refers to."""
        ...

    async def apply(self, resource: AnyResource, children: Sequence[Manifest]) -> None:
        """Make the children exist as given, owned by the resource; applying twice changes nothing."""
        ...

    async def remove(self, resource: AnyResource, children: Sequence[Key]) -> None:
        """Delete those of these that exist and belong to the resource."""
        ...

    async def wake(self, resource: AnyResource, deployment: str) -> None:
        """Give a Deployment that sleeps its replicas back, and leave it as it is otherwise."""
        ...

    async def forget_jobs(self, resource: AnyResource, jobs: Sequence[str]) -> None:
        """Delete Jobs of a finished run with their pods and logs; those that are gone already are no error."""
        ...

    async def report(self, key: Key, status: Status) -> None:
        """Write the status if it differs from the stored one."""
        ...
