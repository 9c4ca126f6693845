"""Follows resources until nothing more will happen: reconciles on every change and every few seconds."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from herdsman.api.v1alpha1.status import ConditionType, Phase, Status
from herdsman.core.conditions import find
from herdsman.core.references import inputs_first
from herdsman.core.site import Site
from herdsman.core.status import is_final, is_refused
from herdsman.core.world import Key
from herdsman.local.cluster import LocalCluster
from herdsman.local.history import headline
from herdsman.reconcile import Outcome, reconcile

LOOK_SECONDS = 0.25
"""How often processes and progress files are looked at; the end of a process is noticed at once."""
RESYNC_SECONDS = 3.0
"""How often everything is reconciled even if nothing seems to have changed."""
MAX_FAULTS = 5
"""Faults of the home's disk in a row after which following ends."""


class Listener(Protocol):
    """Who is told what happens."""

    def changed(self, key: Key, status: Status) -> None:
        """Hear that a resource's status has changed."""
        ...

    def said(self, sentence: str) -> None:
        """Hear something about the whole."""
        ...

    def looked(self) -> None:
        """Hear that time has passed."""
        ...


@dataclass(frozen=True)
class Ending:
    """How following ended."""

    statuses: dict[Key, Status]
    interrupted: bool = False
    """Whether it was asked to stop before everything was final."""
    stuck: list[Key] = field(default_factory=list)
    """Resources that cannot go on in this invocation: they wait for what will not come."""

    @property
    def succeeded(self) -> bool:
        """Whether every resource is as it was asked to be; a suspended one is."""
        return all(as_asked(status) for status in self.statuses.values())


def as_asked(status: Status) -> bool:
    """Whether a resource has succeeded, serves, or stands still because its spec says so."""
    return status.phase in (Phase.SUCCEEDED, Phase.READY, Phase.SUSPENDED)


def with_inputs(keys: Iterable[Key], cluster: LocalCluster) -> list[Key]:
    """Return the keys and all resources of the home that they refer to, inputs first."""
    return inputs_first(keys, cluster.resources())


class Follower:
    """Follows some resources of a home; `stop` may be called at any time."""

    def __init__(self, cluster: LocalCluster, site: Site, keys: Sequence[Key], listener: Listener) -> None:
        self._cluster = cluster
        self._site = site
        self._keys = list(keys)
        self._listener = listener
        self._outcomes: dict[Key, Outcome] = {}
        self._due_at: dict[Key, float] = {}
        self._held: set[Key] = set()
        self.stops = 0
        """How often it was asked to stop."""
        self._wake = asyncio.Event()

    async def run(self) -> Ending:
        """Follow until every resource is final, or nothing more can happen, or it was stopped and all has ended."""
        faults = 0
        changed: Collection[Key] = self._keys
        with self._waking_on_ended_processes():
            while True:
                self._wake.clear()
                before = self._cluster.fingerprints()
                try:
                    await self._reconcile_until_settled(changed)
                    self._cluster.settle([key for key in self._keys if key not in self._held])
                    faults = 0
                except OSError as error:
                    faults += 1
                    self._listener.said(f"{error.filename or self._cluster.home.root}: {error.strerror}; trying again")
                    if faults == MAX_FAULTS:
                        raise
                over = self._over()
                if self._cluster.fingerprints() == before:  # asked last: nothing has ended since it was reconciled
                    if over:
                        return self._ending()
                    changed = await self._until_something_happens(before)
                else:
                    changed = self._keys

    def stop(self) -> None:
        """Ask all runs to save and end; the second call kills them."""
        self.stops += 1
        if self.stops == 1:
            self._cluster.drain()
        else:
            self._cluster.kill()
        self._wake.set()

    async def _reconcile_until_settled(self, changed: Collection[Key]) -> None:
        """Reconcile what has changed; while phases or reasons change, reconcile everything, so that changes pass on."""
        for turn in range(len(self._keys) + 2):
            before = {key: _gist(outcome.status) for key, outcome in self._outcomes.items()}
            for key in changed if turn == 0 else self._keys:
                await self._reconcile(key)
            if before == {key: _gist(outcome.status) for key, outcome in self._outcomes.items()}:
                return

    async def _reconcile(self, key: Key) -> None:
        outcome = await reconcile(key, self._cluster, self._site)
        known = self._outcomes.get(key)
        self._outcomes[key] = outcome
        self._due_at.pop(key, None)
        if outcome.requeue_after is not None:
            self._due_at[key] = time.monotonic() + outcome.requeue_after
        if outcome.status is not None and is_final(outcome.status):
            self._cluster.stop(key)  # what still works when the end is decided is overdue
        if outcome.status is not None and (known is None or known.status != outcome.status):
            self._listener.changed(key, outcome.status)

    async def _until_something_happens(self, before: dict[Key, object]) -> Collection[Key]:
        """Wait for a change, or for the time to look at everything; return what is to be reconciled."""
        deadline = min([time.monotonic() + RESYNC_SECONDS, *self._due_at.values()])
        while time.monotonic() < deadline and not self._wake.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), LOOK_SECONDS)
            self._listener.looked()
            self._hold_what_was_stopped()
            after = self._cluster.fingerprints()
            changed = {key for key in self._keys if after.get(key) != before.get(key)} | self._starting_servers()
            if changed:
                return changed
        return self._keys

    def _hold_what_was_stopped(self) -> None:
        """Let go of the resources that `herdsman stop KIND NAME` names."""
        for key in self._keys:
            if key not in self._held and (self._cluster.home.stops / f"{key.kind}-{key.name}").exists():
                self._held.add(key)
                self._cluster.stop(key)
                self._listener.said(f"{key.kind}/{key.name}: stopped on request; run again to go on")

    def _starting_servers(self) -> set[Key]:
        """Return the servers that may become ready at any moment, which nobody but their port tells."""
        statuses = {key: outcome.status for key, outcome in self._outcomes.items()}
        return {key for key, status in statuses.items() if status and status.phase == Phase.PROGRESSING}

    def _over(self) -> bool:
        if self.stops:
            return not self._cluster.running_jobs()
        return not any(self._goes_on(key, outcome.status) for key, outcome in self._outcomes.items())

    def _goes_on(self, key: Key, status: Status | None) -> bool:
        """Whether something may still happen to the resource without anybody's help."""
        if self._cluster.winds_down(key) or any(job.owner == key for job in self._cluster.running_jobs()):
            return True
        if status is None or is_final(status) or status.phase == Phase.READY or key in self._held:
            return False
        return self._cluster.active(key) or (key in self._due_at and not _waits(status))

    def _ending(self) -> Ending:
        statuses = {key: outcome.status for key, outcome in self._outcomes.items() if outcome.status is not None}
        stuck = [key for key, status in statuses.items() if not is_final(status) and not as_asked(status)]
        return Ending(statuses, interrupted=bool(self.stops) and bool(stuck), stuck=stuck)

    @contextlib.contextmanager
    def _waking_on_ended_processes(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        try:
            loop.add_signal_handler(signal.SIGCHLD, self._wake.set)
        except (ValueError, RuntimeError, NotImplementedError):
            yield  # not in the main thread: looking every LOOK_SECONDS does as well
            return
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGCHLD)


def _gist(status: Status | None) -> object:
    return (status.phase, headline(status), len(status.attempts)) if status else None


def _waits(status: Status) -> bool:
    """Whether it waits for somebody else, or is refused."""
    ready = find(status, ConditionType.DEPENDENCIES_READY)
    return is_refused(status) or (ready is not None and ready.status == "False")
