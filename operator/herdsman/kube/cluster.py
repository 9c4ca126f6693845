"""Kubernetes as a cluster: the port of reconcile.py over the cache and the API server."""

import contextlib
from collections.abc import Sequence
from datetime import datetime

from herdsman.api.meta import API_VERSION
from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.registry import KINDS, AnyResource
from herdsman.api.v1alpha1.status import Phase, Status
from herdsman.cluster import Invalid
from herdsman.core import names, references, volumes
from herdsman.core.plan_types import Manifest
from herdsman.core.status import is_final
from herdsman.core.world import JobFacts, Key, PodFacts, ServerFacts, World
from herdsman.kube.announcements import announcements
from herdsman.kube.cache import ResourceKey, controller_uid
from herdsman.kube.children import apply_children
from herdsman.kube.errors import NotFound
from herdsman.kube.facts import attempt_of, is_finished, job_facts, pods_are_known, server_facts
from herdsman.kube.pod_facts import JOB_LABEL, Cause, moment, pod_facts
from herdsman.kube.shell import Shell
from herdsman.kube.trimming import Body

UNTOLD_SECONDS = 2.0
"""How long a status may wait for what was just made, which often works by then."""
CLAIM_SECONDS = 5.0
"""How soon a resource is looked at again whose claim does not exist."""


class KubeCluster:
    """One namespace, for one reconciliation: what was read is what the status is written against."""

    def __init__(self, shell: Shell, namespace: str) -> None:
        self._shell = shell
        self._namespace = namespace
        self._body: Body | None = None
        self._made = False
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
        if resource.status is not None and is_final(resource.status):
            return World(now=now, jobs=await self._jobs(resource, me, now))
        others = self._referenced(resource)
        wanted = volumes.claims(resource, others)
        found = await self._shell.claims.facts(self._namespace, wanted)
        if len(found) < len(wanted):
            self._soon(CLAIM_SECONDS)
        return World(
            now=now,
            jobs=await self._jobs(resource, me, now),
            server=self._server(resource, me) if isinstance(resource, ModelServer) else None,
            resources=others,
            volumes=found,
            writers=self._shell.index.elder_writers(me),
            foreign=self._shell.foreign(self._namespace),
        )

    async def apply(self, resource: AnyResource, children: Sequence[Manifest]) -> None:
        """Make the children exist as given, owned by the resource; applying twice changes nothing."""
        me = ResourceKey(self._namespace, references.key_of(resource))
        if await apply_children(self._shell, resource, children):
            self._shell.untold.setdefault(me, self._shell.clock() + UNTOLD_SECONDS)
            self._made = True
        refusal = self._shell.refusals.get(me)
        if refusal is not None:
            self._soon(max(0.2, refusal.again - self._shell.clock()))

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
            self._soon(min(wait, 0.1) if self._made else wait)
            return
        self._shell.untold.pop(me, None)
        body = self._body
        assert body is not None, "report follows read"
        before = self._shell.models.read(body).status
        if before == status:
            return
        metadata = {name: body["metadata"][name] for name in ("name", "namespace", "uid", "resourceVersion")}
        document = {"apiVersion": API_VERSION, "kind": key.kind, "metadata": metadata, "status": status.to_json()}
        written = await self._shell.api.apply(document, subresource="status")
        self._shell.intake.seen(written, own=True)
        if is_final(status) and (body.get("spec") or {}).get("ttlSecondsAfterFinished") is not None:
            self._soon(0.0)  # only now that the end is recorded may the Jobs' time begin to run
        for announcement in announcements(before, status):
            self._shell.recorder.announce(written, announcement)

    def _referenced(self, resource: AnyResource) -> dict[Key, AnyResource]:
        """Return all resources that are referred to, directly or through others, as far as they exist."""
        found: dict[Key, AnyResource] = {}
        asked = {references.key_of(resource)}
        line = [key for _, key in references.direct(resource)]
        while line:
            key = line.pop()
            if key in asked:
                continue
            asked.add(key)
            other = self._shell.models.resource(self._shell.cache.get(key.kind, self._namespace, key.name))
            if other is not None:
                found[key] = other
                line += [next_key for _, next_key in references.direct(other)]
        return found

    async def _jobs(self, resource: AnyResource, me: ResourceKey, now: datetime) -> dict[str, JobFacts]:
        if KINDS[resource.kind].serves:
            return {}
        mine = self._mine(resource, me, "Job")
        pods = self._shell.cache.children(me, "Pod") if mine else []
        facts = [
            await self._job(job, [pod for pod in pods if _job_of(pod) == job["metadata"]["uid"]], now) for job in mine
        ]
        found = {fact.name: fact for fact in facts}
        refused = self._refused(me)
        return found if refused is None else {refused.name: refused, **found}

    async def _job(self, job: Body, pods: list[Body], now: datetime) -> JobFacts:
        uid, finished = job["metadata"]["uid"], is_finished(job)
        departed = self._shell.cache.departed(uid)
        if finished and not pods_are_known(job, [*pods, *departed]) and uid not in self._shell.looked:
            pods, departed = await self._pods_now(job), self._shell.cache.departed(uid)
            self._shell.looked.add(uid)
        cause = None if finished else await self._cause(job, pods, now)
        return job_facts(job, pods, departed, cause=cause, live=self._shell.live.shown(uid, final=finished))

    async def _pods_now(self, job: Body) -> list[Body]:
        """Ask for a Job's pods: their watch may be behind that of the Jobs."""
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        listing = await self._shell.api.list_objects("Pod", self._namespace, labelSelector=f"{JOB_LABEL}={name}")
        for pod in listing.items:
            self._shell.intake.seen(pod, own=True)
        stored = (self._shell.cache.get("Pod", self._namespace, pod["metadata"]["name"]) for pod in listing.items)
        return [pod for pod in stored if pod is not None and _job_of(pod) == uid]

    async def _cause(self, job: Body, pods: list[Body], now: datetime) -> Cause | None:
        """Return what Events say of a Job without pods, or of the first pod that does not start."""
        if (job.get("spec") or {}).get("suspend"):
            return None
        waiting = [pod for pod in pods if (facts := pod_facts(pod)).phase == "Pending" and facts.reason is None]
        if pods and not waiting:
            return None
        concerned = waiting[0] if waiting else job
        return await self._told(concerned, now, since=(job.get("status") or {}).get("startTime") if not pods else None)

    async def _told(self, body: Body, now: datetime, since: str | None = None) -> Cause | None:
        start = moment(since or body["metadata"].get("creationTimestamp"))
        age = (now - start).total_seconds() if start is not None else 0.0
        cause, again = await self._shell.events.cause(body, age)
        self._soon(again)
        return cause

    def _refused(self, me: ResourceKey) -> JobFacts | None:
        """Return a stand-in for the Job that could not be made, so that the status tells why."""
        refusal = self._shell.refusals.get(me)
        if refusal is None or refusal.job is None:
            return None
        name, cause = refusal.job["metadata"]["name"], refusal.cause
        return JobFacts(name, attempt_of(refusal.job), reason=cause.reason, message=cause.message)

    def _server(self, resource: ModelServer, me: ResourceKey) -> ServerFacts | None:
        refusal = self._shell.refusals.get(me)
        if refusal is not None:
            name, cause = names.server(me.key.name), refusal.cause
            return ServerFacts(pods=(PodFacts(name, container="server", reason=cause.reason, message=cause.message),))
        mine = self._mine(resource, me, "Deployment")
        return server_facts(mine[0], self._shell.cache.children(me, "Pod")) if mine else None

    def _mine(self, resource: AnyResource, me: ResourceKey, kind: str) -> list[Body]:
        """Return the children that are owned by this very resource, not by an earlier one of its name."""
        uid = resource.metadata.uid
        return [child for child in self._shell.cache.children(me, kind) if controller_uid(child) == uid]

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


def _job_of(pod: Body) -> str | None:
    return controller_uid(pod)
