"""What is observed of one resource: from the cache, and from the API server only where that may be behind."""

from dataclasses import replace
from datetime import datetime

from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.registry import KINDS, AnyResource
from herdsman.core import names, references
from herdsman.core.activator import CONTAINER as ACTIVATOR
from herdsman.core.world import ActivatorFacts, JobFacts, Key, PodFacts, ServerFacts
from herdsman.kube.cache import ResourceKey, controller_uid, is_activator
from herdsman.kube.facts import attempt_of, is_finished, is_preflight, job_facts, pods_are_known
from herdsman.kube.pod_facts import JOB_LABEL, Cause, moment, pod_facts
from herdsman.kube.server_facts import not_made, server_facts
from herdsman.kube.shell import Shell
from herdsman.kube.trimming import Body


class Observer:
    """Observes one resource, once."""

    def __init__(self, shell: Shell, resource: AnyResource, now: datetime) -> None:
        self._shell = shell
        self._resource = resource
        self._namespace = resource.metadata.namespace
        self._me = ResourceKey(self._namespace, references.key_of(resource))
        self._now = now
        self.look_again: float | None = None
        """Seconds after which Events may tell more."""
        self.unsure = False
        """Whether there may be a cause that could not be asked for yet."""

    def referenced(self) -> dict[Key, AnyResource]:
        """Return all resources that are referred to, directly or through others, as far as they exist."""
        found: dict[Key, AnyResource] = {}
        asked = {references.key_of(self._resource)}
        line = [key for _, key in references.direct(self._resource)]
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

    async def jobs(self) -> dict[str, JobFacts]:
        """Return its Jobs by name, and one that could not be made."""
        if KINDS[self._resource.kind].serves:
            return {}
        mine = self._mine("Job")
        pods = self._shell.cache.children(self._me, "Pod") if mine else []
        facts = [await self._job(job, [pod for pod in pods if _job_of(pod) == job["metadata"]["uid"]]) for job in mine]
        found = {fact.name: fact for fact in facts}
        refused = self._refused()
        return found if refused is None else {refused.name: refused, **found}

    async def _job(self, job: Body, pods: list[Body]) -> JobFacts:
        uid, finished = job["metadata"]["uid"], is_finished(job)
        departed = self._shell.cache.departed(uid)
        if finished and not pods_are_known(job, [*pods, *departed]) and uid not in self._shell.looked:
            pods, departed = await self._pods_now(job), self._shell.cache.departed(uid)
            self._shell.looked.add(uid)
        cause = None if finished else await self._cause(job, pods)
        return job_facts(job, pods, departed, cause=cause, live=self._shell.live.shown(uid, final=finished))

    async def _pods_now(self, job: Body) -> list[Body]:
        """Ask for a Job's pods: their watch may be behind that of the Jobs."""
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        listing = await self._shell.api.list_objects("Pod", self._namespace, labelSelector=f"{JOB_LABEL}={name}")
        for pod in listing.items:
            self._shell.intake.seen(pod, own=True)
        stored = (self._shell.cache.get("Pod", self._namespace, pod["metadata"]["name"]) for pod in listing.items)
        return [pod for pod in stored if pod is not None and _job_of(pod) == uid]

    async def _cause(self, job: Body, pods: list[Body]) -> Cause | None:
        """Return what Events say of a Job without pods, or of the first pod that does not start."""
        if (job.get("spec") or {}).get("suspend"):
            return None
        waiting = _silent(pods)
        if pods and not waiting:
            return None
        concerned = waiting[0] if waiting else job
        return await self._told(concerned, since=(job.get("status") or {}).get("startTime") if not pods else None)

    async def _told(self, body: Body, since: str | None = None) -> Cause | None:
        start = moment(since or body["metadata"].get("creationTimestamp"))
        age = (self._now - start).total_seconds() if start is not None else 0.0
        answer = await self._shell.events.cause(self._me, body, age)
        self.look_again = answer.again if self.look_again is None else min(answer.again, self.look_again)
        self.unsure = self.unsure or not answer.sure
        return answer.cause

    def _refused(self) -> JobFacts | None:
        """Return a stand-in for the Job that could not be made, so that the status tells why."""
        refusal = self._shell.refusals.get(self._me)
        if refusal is None or refusal.job is None:
            return None
        name, cause = refusal.job["metadata"]["name"], refusal.cause
        attempt, checks = attempt_of(refusal.job), is_preflight(refusal.job)
        return JobFacts(name, attempt, reason=cause.reason, message=cause.message, preflight=checks)

    async def server(self) -> ServerFacts | None:
        """Return the Deployment of a ModelServer; None for other kinds and where there is none."""
        if not isinstance(self._resource, ModelServer):
            return None
        refusal, name = self._shell.refusals.get(self._me), names.server(self._me.key.name)
        mine = self._deployment_named(name)
        facts = await self._deployment(mine) if mine is not None else None
        if refusal is None:
            return facts
        cause = refusal.cause
        stand_in = PodFacts(name, container="server", reason=cause.reason, message=cause.message)
        facts = facts or ServerFacts()
        return replace(facts, observed_generation=0, config=None, pods=(stand_in, *facts.pods))

    async def _deployment(self, body: Body) -> ServerFacts:
        pods = [pod for pod in self._shell.cache.children(self._me, "Pod") if not is_activator(pod)]
        causes = {pod["metadata"]["name"]: await self._told(pod) for pod in _silent(pods)[:1]}
        told = {name: cause for name, cause in causes.items() if cause is not None}
        configs = [body["metadata"]["name"] for body in self._mine("ConfigMap")]
        reports = [self._shell.live.shown(pod["metadata"]["uid"]) for pod in pods]
        adapters = [report.adapters for report in reports if report is not None and report.adapters is not None]
        return replace(server_facts(body, pods, configs=configs, told=told), adapters=tuple(adapters))

    def activator(self) -> ActivatorFacts | None:
        """Return the activators of a ModelServer; None where there are none."""
        body = self._deployment_named(names.activator(self._me.key.name))
        if body is None:
            return None
        pods = [pod for pod in self._shell.cache.children(self._me, "Pod") if is_activator(pod)]
        return ActivatorFacts(
            ready=(body.get("status") or {}).get("readyReplicas") or 0,
            demand=self._shell.demands.of(pods),
            pods=(*not_made(body, ACTIVATOR), *(pod_facts(pod) for pod in pods)),
        )

    def _deployment_named(self, name: str) -> Body | None:
        return next((body for body in self._mine("Deployment") if body["metadata"]["name"] == name), None)

    def unmade(self) -> dict[Key, str]:
        """Return its optional children that the API server does not take, and what it says."""
        refused = self._shell.unmade.get(self._me, {})
        return {key: refusal.cause.message for key, refusal in refused.items()}

    def _mine(self, kind: str) -> list[Body]:
        """Return the children that are owned by this very resource, not by an earlier one of its name."""
        uid = self._resource.metadata.uid
        return [child for child in self._shell.cache.children(self._me, kind) if controller_uid(child) == uid]


def _silent(pods: list[Body]) -> list[Body]:
    """Return the pods that do not run and do not say why; Events may."""
    return [pod for pod in pods if (facts := pod_facts(pod)).phase == "Pending" and facts.reason is None]


def _job_of(pod: Body) -> str | None:
    return controller_uid(pod)
