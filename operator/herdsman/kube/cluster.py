"""Kubernetes as a cluster: the port of reconcile.py over the cache and the API server."""

import contextlib
from collections.abc import Sequence
from datetime import datetime

from herdsman.api.meta import API_VERSION
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.status import Phase, Status
from herdsman.cluster import Invalid
from herdsman.core import references, volumes
from herdsman.core.plan_types import Manifest
from herdsman.core.status import is_final
from herdsman.core.world import Key, World
from herdsman.kube.announcements import announcements
from herdsman.kube.cache import ResourceKey, controller_uid
from herdsman.kube.children import apply_children, remove_child, wake_deployment
from herdsman.kube.errors import NotFound
from herdsman.kube.observing import Observer
from herdsman.kube.queue import CROWDED_SECONDS
from herdsman.kube.shell import Shell
from herdsman.kube.trimming import Body

UNTOLD_SECONDS, CROWDED_UNTOLD_SECONDS = 2.0, 8.0
"""How long a status may wait for what was just made, which often works by then; and while many resources wait."""
FIRST_LOOK_SECONDS = 0.1
"""How soon after children were made is looked whether something is wrong with them; in a crowd their events tell."""
CLAIM_SECONDS = 5.0
"""How soon a resource is looked at again whose claim does not exist."""


class KubeCluster:
    """One namespace, for one reconciliation: what was read is what the status is written against."""

    def __init__(self, shell: Shell, namespace: str) -> None:
        self._shell = shell
        self._namespace = namespace
        self._body: Body | None = None
        self._made = False
        self._first_look = FIRST_LOOK_SECONDS
        self._unsure = False
        self.look_again: float | None = None
        """Seconds after which something may be found out that no watch tells."""

    def now(self) -> datetime:
        """Return the present time, in UTC."""
        return self._shell.today()

    async def read(self, key: Key) -> AnyResource | Invalid | None:
        """Return the resource, why it is invalid, or None when it is gone or going."""
        body = self._shell.cache.get(key.kind, self._namespace, key.name)
        if body is None or body["metadata"].get("deletionTimestamp"):
            self._shell.forget(ResourceKey(self._namespace, key))
            return None
        self._body = body
        return self._shell.models.read(body)

    async def observe(self, resource: AnyResource) -> World:
        """Return one snapshot of its children and of what it refers to; of a finished one only its Jobs matter."""
        me = ResourceKey(self._namespace, references.key_of(resource))
        now = self.now()
        observer = Observer(self._shell, resource, now)
        if resource.status is not None and is_final(resource.status):
            self._shell.events.gone_on(me)
            return World(now=now, jobs=await observer.jobs())
        others = observer.referenced()
        wanted = volumes.claims(resource, others)
        found = await self._shell.claims.facts(self._namespace, wanted)
        if len(found) < len(wanted):
            self._soon(CLAIM_SECONDS)
        jobs, server = await observer.jobs(), await observer.server()
        if observer.look_again is not None:
            self._soon(observer.look_again)
        else:
            self._shell.events.gone_on(me)
        self._unsure = observer.unsure
        return World(
            now=now,
            jobs=jobs,
            server=server,
            activator=observer.activator(),
            resources=others,
            volumes=found,
            writers=self._shell.index.elder_writers(me),
            foreign=self._shell.foreign(self._namespace),
            unmade=observer.unmade(),
        )

    async def apply(self, resource: AnyResource, children: Sequence[Manifest]) -> None:
        """Make the children exist as given, owned by the resource; applying twice changes nothing."""
        me = ResourceKey(self._namespace, references.key_of(resource))
        if await apply_children(self._shell, resource, children):
            crowded = self._shell.queue.crowded
            untold = CROWDED_UNTOLD_SECONDS if crowded else UNTOLD_SECONDS
            self._first_look = CROWDED_SECONDS if crowded else FIRST_LOOK_SECONDS
            self._shell.untold.setdefault(me, self._shell.clock() + untold)
            self._made = True
        refusals = list(self._shell.unmade.get(me, {}).values())
        if (refusal := self._shell.refusals.get(me)) is not None:
            refusals.append(refusal)
        for refusal in refusals:
            self._soon(max(0.2, refusal.again - self._shell.clock()))

    async def remove(self, resource: AnyResource, children: Sequence[Key]) -> None:
        """Delete those of these that exist and belong to the resource."""
        for key in children:
            await remove_child(self._shell, resource, key)

    async def wake(self, resource: AnyResource, deployment: str) -> None:
        """Give a Deployment that sleeps its replicas back, and leave it as it is otherwise."""
        await wake_deployment(self._shell, resource, deployment)

    async def forget_jobs(self, resource: AnyResource, jobs: Sequence[str]) -> None:
        """Delete Jobs of a finished run, with their pods, configurations and Services."""
        for name in jobs:
            for kind in ("Job", "ConfigMap", "Service"):
                known = self._shell.cache.get(kind, self._namespace, name)
                if known is not None and controller_uid(known) == resource.metadata.uid:
                    await self._delete(known)

    async def report(self, key: Key, status: Status) -> None:
        """Write the status if it differs from the stored one, and tell what has changed as Events.

        Right after children were made the status may wait a moment for what they become: one status then tells of it
        all. Raises Conflict where the resource has changed since it was read: the decision is from an old view.
        """
        me = ResourceKey(self._namespace, key)
        if (wait := self._shell.untold.get(me, 0.0) - self._shell.clock()) > 0 and (self._made or _is_starting(status)):
            self._soon(min(wait, self._first_look) if self._made else wait)
            return
        self._shell.untold.pop(me, None)
        body = self._body
        assert body is not None, "report follows read"
        before = self._shell.models.read(body).status
        if before == status:
            return
        if self._unsure and status.failure is None and before is not None and before.failure is not None:
            return  # after a start of the operator: what was told may still hold, and is asked for in a moment
        metadata = {name: body["metadata"][name] for name in ("name", "namespace", "uid", "resourceVersion")}
        document = {"apiVersion": API_VERSION, "kind": key.kind, "metadata": metadata, "status": status.to_json()}
        written = await self._shell.api.apply(document, subresource="status")
        self._shell.intake.seen(written, own=True)
        if is_final(status) and (body.get("spec") or {}).get("ttlSecondsAfterFinished") is not None:
            self._soon(0.0)  # only now that the end is recorded may the Jobs' time begin to run
        for announcement in announcements(before, status):
            self._shell.recorder.announce(written, announcement)

    async def _delete(self, body: Body) -> None:
        metadata = body["metadata"]
        with contextlib.suppress(NotFound):
            await self._shell.api.delete(body["kind"], self._namespace, metadata["name"], uid=metadata["uid"])
        self._shell.intake.gone(body)

    def _soon(self, seconds: float) -> None:
        self.look_again = seconds if self.look_again is None else min(seconds, self.look_again)


def _is_starting(status: Status) -> bool:
    """Whether nothing more is known than that a run or a server was made and nothing is wrong with it."""
    return status.phase in (Phase.PENDING, Phase.PROGRESSING) and status.failure is None
