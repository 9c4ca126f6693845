"""The operator without its event source: workers over the queue, the regular full listing, and the progress poll."""

import asyncio
import contextlib
import gc
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.core.site import Site
from herdsman.kube.cache import ResourceKey, controller_uid, parent_of
from herdsman.kube.cluster import KubeCluster
from herdsman.kube.demand import DEMAND_SECONDS
from herdsman.kube.errors import ApiError, Conflict, NameTaken, NotFound, StillThere, Unreachable
from herdsman.kube.listing import FullListing
from herdsman.kube.live import POLL_SECONDS, Target
from herdsman.kube.metrics import Metrics
from herdsman.kube.pod_facts import INDEX_LABEL
from herdsman.kube.shell import Shell
from herdsman.kube.trimming import Body
from herdsman.reconcile import reconcile

WORKERS = 16
RESYNC_SECONDS = 300.0
RELIST_SECONDS = 15.0
"""How soon after a watch has started over its kind is listed: nothing else tells what vanished meanwhile."""
LONGEST_PAUSE = 10.0
"""Seconds between two tries while the API server is away: it is back within a minute of its return everywhere."""
LONGEST_RETRY = 30.0
"""Seconds between two tries after a temporary answer; bugs and refusals wait longer."""
OLDER_SCHEMA = "field not declared in schema"
"""What the API server says, as an error of its own, of a field that the applied CustomResourceDefinition lacks."""

_log = logging.getLogger("herdsman.operator")


@dataclass
class Readiness:
    """How far the start has come."""

    listed: bool = False
    """Whether everything was listed in full."""
    standing_by: bool = False
    """Whether another replica works, and this one is ready to take over."""
    problem: str = "the first listing is under way"
    listed_at: float = 0.0
    """When everything was last listed, on the clock of time.monotonic."""

    def stand_by(self) -> None:
        """Note that another replica works."""
        self.standing_by = True

    def take_over(self) -> None:
        """Note that this replica works, as soon as everything is listed."""
        self.standing_by = False


class Operator:
    """Works on what the queue holds. Nothing it remembers is needed after a crash."""

    def __init__(
        self,
        shell: Shell,
        site: Site,
        metrics: Metrics,
        *,
        namespaces: tuple[str, ...] = (),
        workers: int = WORKERS,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._shell = shell
        self._site = site
        self._metrics = metrics
        self._listing = FullListing(shell, namespaces, jitter)
        self._workers = workers
        self._jitter = jitter
        self._pause = 0.0
        self._busy = 0
        self._draining = False
        self.readiness = Readiness()

    async def run(self) -> None:
        """Work for ever; everything should have been listed before."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._workers):
                tasks.create_task(self._work(), name=f"worker {number}")
            tasks.create_task(self._resync_forever(), name="resync")
            tasks.create_task(self._poll_forever(), name="progress poll")
            tasks.create_task(self._poll_demand_forever(), name="demand poll")
            tasks.create_task(self._shell.recorder.run(), name="events")

    async def list_until_done(self) -> None:
        """List everything for the first time, however long the API server or the CRDs take to be there."""
        while not self.readiness.listed:
            try:
                await self.resync()
            except (ApiError, Unreachable) as error:
                self.readiness.problem = _explained(error)
                _log.warning("The first listing did not succeed: %s", self.readiness.problem)
                await asyncio.sleep(2.0)

    async def resync(self) -> None:
        """List every kind in full and look at every resource again, spread over a while."""
        with _collector_at_rest():
            await self._listing.everything()
        if self.readiness.listed:  # the first time, everything was news
            self._listing.look_at_all_again()
        self.readiness.listed, self.readiness.problem, self.readiness.listed_at = True, "", time.monotonic()

    async def reconcile_one(self, key: ResourceKey) -> None:
        """Reconcile one resource and see to it that it is looked at again if that is needed."""
        cluster = KubeCluster(self._shell, key.namespace)
        queue = self._shell.queue
        try:
            with self._metrics.seconds.time():
                outcome = await reconcile(key.key, cluster, self._site)
        except Unreachable as error:
            self._away(key, error)
        except (Conflict, NotFound, NameTaken, StillThere) as error:
            _log.debug("%s: %s", key, error)
            self._metrics.errors.labels("conflict").inc()
            await self._refresh(key)
            queue.retry(key, longest=LONGEST_RETRY)
        except ApiError as error:
            self._refused(key, error)
        except Exception:  # noqa: BLE001 - one resource's bug must not stop the others
            _log.exception("%s: a bug; the resource is tried again later", key)
            self._metrics.errors.labels("bug").inc()
            queue.retry(key)
        else:
            self._pause = 0.0
            queue.forget(key)
            waits = [wait for wait in (outcome.requeue_after, cluster.look_again) if wait is not None]
            if waits and outcome.status is not None:
                queue.add_after(key, min(waits))

    async def poll(self) -> None:
        """Ask the running trainers for their progress once, and look at those again that have news."""
        for key in await self._shell.live.poll(self._targets()):
            self._shell.queue.add(key)

    async def poll_demand(self) -> None:
        """Ask the activators once how much is asked for, and look at those servers again to which it matters."""
        for key in await self._shell.demands.poll(self._shell.cache.activators()):
            self._shell.queue.add(key, urgent=True)

    async def drain(self) -> None:
        """Begin nothing more, and return once what is under way has ended."""
        self._draining = True
        while self._busy:
            await asyncio.sleep(0.05)

    async def _work(self) -> None:
        while not self._draining:
            key = await self._shell.queue.get()
            self._busy += 1
            try:
                await self.reconcile_one(key)
            finally:
                self._busy -= 1
                self._shell.queue.done(key)
            if self._pause:
                await asyncio.sleep(self._pause * (1 + self._jitter()))

    async def _resync_forever(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._resync_delay()
        while True:
            await asyncio.sleep(RELIST_SECONDS)
            try:
                if loop.time() >= due:
                    await self.resync()
                    due = loop.time() + self._resync_delay()
                else:
                    await self._listing.relisted()
            except (ApiError, Unreachable) as error:
                self.readiness.problem = _explained(error)
                _log.warning("A full listing did not succeed and is tried again: %s", self.readiness.problem)

    def _resync_delay(self) -> float:
        return RESYNC_SECONDS * (0.8 + 0.4 * self._jitter())

    async def _poll_forever(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self.poll()

    async def _poll_demand_forever(self) -> None:
        while True:
            await asyncio.sleep(DEMAND_SECONDS)
            await self.poll_demand()

    async def _refresh(self, key: ResourceKey) -> None:
        """Read a resource again whose view was too old."""
        try:
            self._shell.intake.seen(await self._shell.api.get(key.key.kind, key.namespace, key.key.name))
        except NotFound:
            known = self._shell.cache.get(key.key.kind, key.namespace, key.key.name)
            if known is not None:
                self._shell.intake.gone(known)
        except (ApiError, Unreachable) as error:
            _log.debug("%s could not be read again: %s", key, error)

    def _away(self, key: ResourceKey, error: Unreachable) -> None:
        if not self._pause:
            _log.warning("The API server does not answer; what runs goes on, and work is taken up again: %s", error)
        self._metrics.errors.labels("unreachable").inc()
        self._pause = min(LONGEST_PAUSE, 2 * self._pause or 0.5)
        self._shell.queue.add_after(key, self._pause)

    def _refused(self, key: ResourceKey, error: ApiError) -> None:
        self._metrics.errors.labels("temporary" if error.temporary else "refused").inc()
        outdated = OLDER_SCHEMA in error.message
        level = logging.INFO if error.temporary and not outdated else logging.ERROR
        remedy = "; the CustomResourceDefinitions are older than this operator: apply those of its chart"
        _log.log(level, "%s: %s%s", key, error, remedy if outdated else "")
        longest = LONGEST_RETRY if error.temporary else None
        self._shell.queue.retry(key, longest=longest, at_least=error.retry_after or 0.0)
        if error.status == 429:
            self._pause = max(self._pause, min(LONGEST_PAUSE, error.retry_after or 1.0))

    def _targets(self) -> list[Target]:
        """Return rank 0 of every running Job, and the replicas of servers with hot adapters."""
        return [target for pod in self._shell.cache.of_kind("Pod") if (target := self._target(pod)) is not None]

    def _target(self, pod: Body) -> Target | None:
        metadata, status = pod["metadata"], pod.get("status") or {}
        parent, job = parent_of(pod), controller_uid(pod)
        if parent is None or job is None or status.get("phase") != "Running" or not status.get("podIP"):
            return None
        if parent.key.kind == "ModelServer":
            return self._replica(pod, parent, status["podIP"])
        first = (metadata.get("labels") or {}).get(INDEX_LABEL) == "0"
        port = self._site.metrics_port
        return Target(job, parent, status["podIP"], port) if first and port else None

    def _replica(self, pod: Body, parent: ResourceKey, host: str) -> Target | None:
        known = self._shell.cache.get(parent.key.kind, parent.namespace, parent.key.name)
        server = self._shell.models.resource(known)
        if not isinstance(server, ModelServer) or not server.spec.hot_adapters:
            return None
        port = server.spec.metrics_port or self._site.metrics_port
        return Target(pod["metadata"]["uid"], parent, host, port, "/adapters") if port else None


@contextlib.contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Have nothing looked through for garbage meanwhile: there are no cycles in JSON, and looking through what was read
    so far, again and again, takes longer than reading it.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _explained(error: ApiError | Unreachable) -> str:
    if isinstance(error, NotFound):
        return f"a CustomResourceDefinition is missing; apply those of the chart or of crds/ ({error})"
    return str(error)
