"""An operator over the API server in memory, with a clock of the test's own and watches that can lag."""

import asyncio
from collections import deque
from datetime import timedelta
from typing import Any

import builders
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.core.site import Site
from herdsman.core.world import Key
from herdsman.kube.cache import ResourceKey
from herdsman.kube.listing import CHILDREN
from herdsman.kube.metrics import Metrics
from herdsman.kube.operator import Operator
from herdsman.kube.shell import make_shell
from kube.fake_api import FakeApi
from kube.fake_platform import FakePlatform, Script, succeed

NAMESPACE = "team"
WATCHED = {*KINDS, *CHILDREN}


class Station:
    """One cluster that outlives its operators."""

    def __init__(self, script: Script = succeed):
        self.seconds = 0.0
        self.api = FakeApi(lambda: self.today().strftime("%Y-%m-%dT%H:%M:%SZ"))
        self.platform = FakePlatform(self.api, script)
        self.events: deque[tuple[str, dict[str, Any]]] = deque()
        self.api.listeners.append(lambda change, body: self.events.append((change, body)))
        self.progress: dict[str, bytes] = {}
        """What trainers answer, by the Job's uid."""
        self.metrics = Metrics()

    def today(self):
        return builders.NOW + timedelta(seconds=self.seconds)

    def start(self, namespaces=()):
        """Start an operator in place of the one before, which is simply gone."""
        self.events.clear()
        self.shell = make_shell(self.api, self._answer, clock=lambda: self.seconds, today=self.today)
        self.shell.queue._jitter = lambda: 0.0
        self.operator = Operator(self.shell, Site(), self.metrics, namespaces=namespaces, jitter=lambda: 0.0)

    async def _answer(self, target):
        if target.uid not in self.progress:
            raise OSError("connection refused")
        return self.progress[target.uid]

    def deliver(self, *, hold=()):
        """Let the watches bring what has happened, but for these kinds."""
        held = deque()
        while self.events:
            change, body = self.events.popleft()
            if body["kind"] in hold:
                held.append((change, body))
            elif body["kind"] in WATCHED:
                self.shell.intake.event(change, body)
        self.events = held

    async def work(self, *, hold=()):
        """Reconcile until nothing is ready any more."""
        queue = self.shell.queue
        self.deliver(hold=hold)
        queue._release_due()
        while queue.depth:
            key = await queue.get()
            await self.operator.reconcile_one(key)
            queue.done(key)
            self.deliver(hold=hold)
        await self.shell.recorder.drain()

    async def settle(self, *, patience=120.0, hold=()):
        """Let operator and platform take turns until nothing moves and nothing is due within `patience` seconds."""
        until = self.seconds + patience
        while True:
            await self.work(hold=hold)
            if self.platform.step():
                self.seconds += 1.0
                continue
            due = [moment for moment in self.shell.queue._due.values() if moment <= until]
            if self.events and not hold:
                continue
            if not due:
                return
            self.seconds = max(self.seconds, min(due))

    def put(self, *resources: Any):
        """Create resources as a user does."""
        for resource in resources:
            document = resource if isinstance(resource, dict) else manifest_of(resource)
            self.api.add(document)

    def claims(self, *names: str):
        """Create bound claims."""
        for name in names:
            self.api.add(claim(name))

    def status(self, resource: Any) -> dict[str, Any]:
        name = resource["metadata"]["name"] if isinstance(resource, dict) else resource.metadata.name
        kind = resource["kind"] if isinstance(resource, dict) else resource.kind
        return self.api.objects[kind, NAMESPACE, name].get("status") or {}

    def key(self, resource: Any) -> ResourceKey:
        return ResourceKey(NAMESPACE, Key(resource.kind, resource.metadata.name))

    def errors(self) -> dict[str, float]:
        """Reconciliations that did not finish, by class."""
        return {
            sample.labels["class"]: sample.value
            for metric in self.metrics.errors.collect()
            for sample in metric.samples
            if sample.name.endswith("_total") and sample.value
        }


def manifest_of(resource: Any, namespace: str = NAMESPACE) -> dict[str, Any]:
    """The manifest of a builder's resource."""
    document = resource.to_json()
    document.pop("status", None)
    document["metadata"] = {"name": resource.metadata.name, "namespace": namespace}
    return document


def claim(name: str, mode: str = "ReadWriteMany", phase: str = "Bound", namespace: str = NAMESPACE) -> dict[str, Any]:
    """A PersistentVolumeClaim."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"accessModes": [mode]},
        "status": {"phase": phase},
    }


def run(story):
    """Run a coroutine function of a test."""
    return asyncio.run(story())
