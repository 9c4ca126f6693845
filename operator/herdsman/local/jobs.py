"""Jobs of this machine: one record per attempt, its pods as processes, and what they add up to."""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from herdsman.api.exit_codes import ExitCode
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.core.plan_types import Manifest
from herdsman.core.references import key_of
from herdsman.core.world import JobFacts, Key, PodFacts
from herdsman.local.home import Home
from herdsman.local.job_record import JobRecord
from herdsman.local.json_files import Stamp, read_object, stamp_of, write_json
from herdsman.local.observations import Workspace, read_checkpoints, read_progress, read_report, read_workspace
from herdsman.local.pod_facts import pod_facts
from herdsman.local.processes import PodPlace, Processes, ProcessState
from herdsman.local.scheduler import Grant


class Waiting(NamedTuple):
    """Why a Job has not been started."""

    reason: str
    message: str


class Jobs:
    """The Jobs of a home."""

    def __init__(self, home: Home, processes: Processes) -> None:
        self._home = home
        self._processes = processes
        self._grants: dict[str, Grant] = {}
        self._known: dict[str, tuple[Stamp, JobRecord]] = {}
        self._workspaces: dict[str, Workspace] = {}

    def apply(self, manifest: Manifest, owner: AnyResource) -> None:
        """Record a Job once; of a recorded one only `suspend` may change."""
        name = manifest["metadata"]["name"]
        path = self._directory(name) / "job.json"
        known = read_object(path)
        if known is None:
            kind, owner_name = key_of(owner)
            identity = {"kind": kind, "name": owner_name, "uid": owner.metadata.uid}
            write_json(path, {"owner": identity, "created": time.time(), "manifest": manifest})
            return
        spec = {**known["manifest"]["spec"], "suspend": manifest["spec"].get("suspend", False)}
        write_json(path, {**known, "manifest": {**known["manifest"], "spec": spec}})

    def records(self) -> list[JobRecord]:
        """Return all Jobs, first come first."""
        found = (self.record(path.parent.name) for path in self._home.jobs.glob("*/job.json"))
        return sorted((record for record in found if record is not None), key=lambda record: record.created)

    def record(self, name: str) -> JobRecord | None:
        """Return the Job of this name."""
        path = self._directory(name) / "job.json"
        stamp = stamp_of(path)
        known = self._known.get(name)
        if known is not None and known[0] == stamp:
            return known[1]
        data = read_object(path)
        if data is None:
            return None
        owner = Key(data["owner"]["kind"], data["owner"]["name"])
        record = JobRecord(name, owner, data["owner"]["uid"], data["created"], data["manifest"])
        self._known[name] = stamp, record
        return record

    def of(self, uid: str) -> list[JobRecord]:
        """Return the Jobs of one resource, oldest attempt first."""
        return [record for record in self.records() if record.uid == uid]

    def places(self, record: JobRecord) -> list[PodPlace]:
        """Return the places of its pods."""
        return [PodPlace(self._directory(record.name), index) for index in range(record.pods)]

    def states(self, record: JobRecord) -> list[ProcessState | None]:
        """Return how its processes are; None for one that was not started."""
        return [self._processes.state(place) for place in self.places(record)]

    def running(self, record: JobRecord) -> bool:
        """Whether any of its processes lives."""
        return any(state is not None and state.running for state in self.states(record))

    def waits(self, record: JobRecord) -> bool:
        """Whether it waits for its start."""
        return not record.suspended and all(state is None for state in self.states(record))

    def granted(self, record: JobRecord) -> Grant | None:
        """Return what a Job started by this process may use."""
        return self._grants.get(record.name)

    def start(self, record: JobRecord, grant: Grant) -> None:
        """Start its processes with what it was granted."""
        template = record.template
        threads = str(max(1, grant.cores // (record.pods * self._workspace(record).processes)))
        share = str(max(1, grant.cores // record.pods))
        self._grants[record.name] = grant
        for place in self.places(record):
            gpus = grant.gpus[place.index * template.gpus : (place.index + 1) * template.gpus]
            environment = {
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                "OMP_NUM_THREADS": threads,
                "HERDSMAN_THREADS": share,
                "CUDA_VISIBLE_DEVICES": ",".join(str(index) for index in gpus),
                "JOB_COMPLETION_INDEX": str(place.index),
                **template.environment,
            }
            self._processes.start(place, template.command, environment, grace=template.grace, kept=False)

    def terminate(self, record: JobRecord) -> None:
        """Ask its processes to save and end."""
        for place in self.places(record):
            self._processes.terminate(place)

    def kill(self, record: JobRecord) -> None:
        """Kill its processes."""
        for place in self.places(record):
            self._processes.kill(place)

    def settle(self, record: JobRecord) -> None:
        """Do what a Job controller does: stop the pods of a suspended, overdue or broken Job."""
        states = self.states(record)
        running = any(state is not None and state.running for state in states)
        if record.suspended or (running and (self._overdue(record, states) or any(_fell(state) for state in states))):
            self.terminate(record)
        if record.suspended and not running:
            for place in self.places(record):
                self._processes.forget(place)

    def delete(self, record: JobRecord) -> None:
        """Forget a Job whose processes have ended, with its configuration and logs."""
        (self._home.configs / f"{record.name}.json").unlink(missing_ok=True)
        for place in self.places(record):
            self._processes.forget(place)
        shutil.rmtree(self._directory(record.name), ignore_errors=True)
        self._workspaces.pop(record.name, None)

    def fingerprint(self, record: JobRecord) -> tuple[Any, ...]:
        """Return what changes whenever something happens to a Job: its processes and what they write."""
        workspace = self._workspace(record).directory
        files = [workspace / "progress.json", workspace / "checkpoints"] if workspace else []
        stamps = tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in files)
        return (*self.states(record), *stamps, record.suspended)

    def facts(self, record: JobRecord, waiting: Waiting | None = None, *, newest: bool = True) -> JobFacts:
        """Return what is observed of a Job; `waiting` says why it has not been started."""
        pods = tuple(self._pods(record, waiting))
        started = min((pod.started for pod in pods if pod.started), default=None)
        facts = JobFacts(record.name, record.attempt, pods=pods, started=started)
        states = self.states(record)
        if any(state is not None and state.running for state in states):
            facts = replace(facts, state="Running")
        elif record.suspended:
            facts = replace(facts, state="Suspended")
        elif all(pod.phase == "Succeeded" for pod in pods):
            facts = replace(facts, state="Complete", ended=_last_end(pods))
        elif any(state is not None for state in states):
            facts = replace(facts, state="Failed", ended=_last_end(pods))
            if self._overdue(record, states):
                facts = replace(facts, reason="DeadlineExceeded", pods=())
        workspace = self._workspace(record).directory
        if workspace is None or not newest or started is None:
            return facts
        report = read_report(workspace) if facts.state == "Complete" else ()
        progress = read_progress(workspace, started.timestamp())
        return replace(facts, progress=progress, checkpoint=read_checkpoints(workspace), report=report)

    def _pods(self, record: JobRecord, waiting: Waiting | None) -> Iterator[PodFacts]:
        for place, state in zip(self.places(record), self.states(record), strict=True):
            name = f"{record.name}-{place.index}"
            if state is None:
                reason, message = waiting or (None, None)
                yield PodFacts(name, place.index, reason=reason, message=message)
            else:
                yield pod_facts(name, place, state, "trainer")

    def _overdue(self, record: JobRecord, states: list[ProcessState | None]) -> bool:
        limit = record.manifest["spec"].get("activeDeadlineSeconds")
        starts = [state.started for state in states if state is not None and state.started is not None]
        ends = [state.ended for state in states if state is not None and state.ended is not None]
        if limit is None or not starts:
            return False
        running = any(state is not None and state.running for state in states)
        end = time.time() if running or not ends else max(ends)
        return end - min(starts) > float(limit)

    def _workspace(self, record: JobRecord) -> Workspace:
        known = self._workspaces.get(record.name)
        if known is None:
            known = read_workspace(read_object(self._home.configs / f"{record.name}.json"))
            self._workspaces[record.name] = known
        return known

    def _directory(self, name: str) -> Path:
        return self._home.jobs / name


def _fell(state: ProcessState | None) -> bool:
    return state is not None and not state.running and state.exit_code != ExitCode.DONE


def _last_end(pods: tuple[PodFacts, ...]) -> datetime | None:
    return max((pod.ended for pod in pods if pod.ended), default=None)
