"""This machine as a cluster: the port of reconcile.py over a home directory."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.status import Status
from herdsman.cluster import Invalid
from herdsman.core import names
from herdsman.core.plan_types import Manifest
from herdsman.core.references import key_of
from herdsman.core.volumes import claims, writes
from herdsman.core.world import JobFacts, Key, World, WritePath
from herdsman.local.home import Home
from herdsman.local.job_record import JobRecord
from herdsman.local.jobs import Jobs, Waiting
from herdsman.local.json_files import write_text
from herdsman.local.machine import Machine
from herdsman.local.processes import Processes
from herdsman.local.scheduler import choose, shortage
from herdsman.local.secrets_here import absent_secret
from herdsman.local.servers import Servers
from herdsman.local.store import Store
from herdsman.local.volumes import Volumes

_CLUSTERS_OWN = ("Ingress", "HorizontalPodAutoscaler", "ServiceMonitor")
"""What a server may have beside it on a cluster; there is nothing to evict here, so a budget is not missed."""


class LocalCluster:
    """Resources, Jobs, servers and volumes of one home. Observing writes nothing; applying starts nothing by itself.

    What was applied is started, stopped and cleaned up by `settle`, so that all Jobs that may run are known before the
    cores are shared out.
    """

    def __init__(
        self,
        home: Home,
        machine: Machine,
        mapped: Mapping[str, Path] | None = None,
        *,
        assumed: bool = False,
    ) -> None:
        processes = Processes()
        self.home = home
        self.machine = machine
        self.store = Store(home)
        self.jobs = Jobs(home, processes)
        self.servers = Servers(home, processes, machine)
        self.volumes = Volumes(home, mapped, assumed=assumed)
        self._draining = False
        self._queued: set[str] = set()

    def now(self) -> datetime:
        """Return the present time, in UTC."""
        return datetime.now(UTC)

    async def read(self, key: Key) -> AnyResource | Invalid | None:
        """Return the resource, why it is invalid, or None when it is gone."""
        return self.store.read(key)

    async def observe(self, resource: AnyResource) -> World:
        """Return one snapshot of the resource's processes and of everything in the home."""
        me = key_of(resource)
        resources = self.resources()
        records = self.jobs.of(resource.metadata.uid)
        server = self.servers.of(resource.metadata.uid) if isinstance(resource, ModelServer) else None
        return World(
            now=self.now(),
            jobs={record.name: self._job_facts(record, records[-1]) for record in records},
            server=await self.servers.facts(server) if server else None,
            resources={key: other for key, other in resources.items() if key != me},
            volumes=self.volumes.facts(claims(resource, resources)),
            writers=_elder_writers(resource, resources),
            foreign=frozenset(Key("Job", job.name) for job in self.jobs.records() if job.uid != resource.metadata.uid),
            unmade={Key(kind, names.server(me.name)): "herdsman run has no such thing" for kind in _CLUSTERS_OWN},
        )

    async def apply(self, resource: AnyResource, children: Sequence[Manifest]) -> None:
        """Record the children; nothing new is recorded once `drain` was called."""
        if self._draining:
            return
        for child in children:
            name = child["metadata"]["name"]
            match child["kind"]:
                case "PersistentVolumeClaim":
                    self.volumes.make(name)
                case "ConfigMap":
                    self._apply_config(child)
                case "Job":
                    self.jobs.apply(child, resource)
                case "Deployment":
                    self.servers.apply(child, resource)
                case _:
                    pass  # a Service is the port itself, and a headless one the loopback address

    async def remove(self, resource: AnyResource, children: Sequence[Key]) -> None:
        """Delete those of these that exist and belong to the resource: here only configurations do."""
        for key in children:
            server = self.servers.of(resource.metadata.uid)
            if key.kind == "ConfigMap" and server is not None:
                self.servers.forget_config(server, key.name)

    async def wake(self, resource: AnyResource, deployment: str) -> None:
        """Do nothing: no server of this machine sleeps."""

    async def forget_jobs(self, resource: AnyResource, jobs: Sequence[str]) -> None:
        """Delete Jobs of a finished run with their logs; those that are gone already are no error."""
        for record in self.jobs.records():
            if record.name in jobs and record.owner == key_of(resource):
                self.jobs.delete(record)

    async def report(self, key: Key, status: Status) -> None:
        """Write the status if it differs from the stored one."""
        self.store.write_status(key, status, self.now())

    def resources(self) -> dict[Key, AnyResource]:
        """Return all resources of the home that can be read."""
        found = ((key, self.store.read(key)) for key in self.store.all())
        return {key: resource for key, resource in found if resource is not None and not isinstance(resource, Invalid)}

    def settle(self, followed: Collection[Key]) -> None:
        """Stop what should stop, and of the resources that are followed start what may start."""
        for record in self.jobs.records():
            self.jobs.settle(record)
        records = self.jobs.records()
        if self._draining:
            return
        waits = [record for record in records if record.owner in followed and self.jobs.waits(record)]
        waiting = [record for record in waits if self.hindrance(record) is None]
        running = [record for record in records if self.jobs.running(record)]
        taken = frozenset(gpu for record in running if (grant := self.jobs.granted(record)) for gpu in grant.gpus)
        by_name = {record.name: record for record in waiting}
        grants = choose([r.request for r in waiting], [r.request for r in running], taken, self.machine)
        self._queued = by_name.keys() - {grant.job for grant in grants}
        for grant in grants:
            record = by_name[grant.job]
            for claim in record.template.writes:
                self.volumes.make(claim)
            self.jobs.start(record, grant)
        for server in self.servers.records():
            if server.owner in followed:
                self.servers.settle(server)

    def stop(self, key: Key) -> None:
        """Ask everything of one resource to end."""
        for job in self.running_jobs():
            if job.owner == key:
                self.jobs.terminate(job)
        for server in self.servers.records():
            if server.owner == key:
                self.servers.terminate(server)

    def erase(self, key: Key) -> None:
        """Remove the resource and everything made for it but its volumes; its processes must have ended."""
        for job in self.jobs.records():
            if job.owner == key:
                self.jobs.delete(job)
        for server in self.servers.records():
            if server.owner == key:
                self.servers.delete(server)
        self.store.delete(key)

    def fingerprints(self) -> dict[Key, object]:
        """Return what changes for each resource whenever something happens to its processes."""
        found: dict[Key, object] = {}
        for job in self.jobs.records():
            found[job.owner] = (found.get(job.owner), self.jobs.fingerprint(job))
        for server in self.servers.records():
            found[server.owner] = self.servers.fingerprint(server)
        return found

    def active(self, key: Key) -> bool:
        """Whether something of the resource works, or can still start, on this machine."""
        jobs = [record for record in self.jobs.records() if record.owner == key]
        if any(self.jobs.running(job) or (self.jobs.waits(job) and self.hindrance(job) is None) for job in jobs):
            return True
        return any(self.servers.stirs(server) for server in self.servers.records() if server.owner == key)

    def winds_down(self, key: Key) -> bool:
        """Whether a server of the resource still has to end, because none is wanted any more."""
        unwanted = (record for record in self.servers.records() if record.owner == key and not record.replicas)
        return any(self.servers.running(record) for record in unwanted)

    def hindrance(self, record: JobRecord) -> Waiting | None:
        """Return why a Job can never start on this machine as it is, or None."""
        if (short := shortage(record.request, self.machine)) is not None:
            return Waiting("Unschedulable", short)
        absent = absent_secret(record.template)
        return Waiting("SecretNotFound", absent) if absent is not None else None

    def running_jobs(self) -> list[JobRecord]:
        """Return the Jobs with living processes."""
        return [record for record in self.jobs.records() if self.jobs.running(record)]

    def drain(self) -> None:
        """Ask all runs to save and end, and start nothing more; servers go on."""
        self._draining = True
        for record in self.running_jobs():
            self.jobs.terminate(record)

    def kill(self) -> None:
        """Kill all runs at once."""
        self._draining = True
        for record in self.running_jobs():
            self.jobs.kill(record)

    def _job_facts(self, record: JobRecord, newest: JobRecord) -> JobFacts:
        waiting = None
        if self.jobs.waits(record):
            if (hindrance := self.hindrance(record)) is not None:
                waiting = hindrance
            elif record.name in self._queued:
                count = record.request.cores
                waiting = Waiting("Queued", f"waits for {count:g} core{'' if count == 1 else 's'}")
        return self.jobs.facts(record, waiting, newest=record.name == newest.name)

    def _apply_config(self, child: Manifest) -> None:
        """Write the one file of a ConfigMap; an immutable one is written once."""
        path = self.home.configs / f"{child['metadata']['name']}.json"
        if child.get("immutable") and path.exists():
            return
        (text,) = child["data"].values()
        write_text(path, text)


def _elder_writers(resource: AnyResource, resources: Mapping[Key, AnyResource]) -> dict[WritePath, Key]:
    """Return what resources created before this one write."""
    me = _age(resource)
    elders = ((key, other) for key, other in resources.items() if _age(other) < me)
    return {path: key for key, other in elders if (path := writes(other)) is not None}


def _age(resource: AnyResource) -> tuple[str, str, str]:
    created = resource.metadata.creation_timestamp
    return created.isoformat() if created else "", *key_of(resource)
