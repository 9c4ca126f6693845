"""Servers of this machine: a Deployment with its Service is one kept process on the Service's port."""

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from herdsman.api.exit_codes import PERMANENT
from herdsman.api.job_config import AdapterReport
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.status import AdapterStatus
from herdsman.core import names
from herdsman.core.plan_types import Manifest
from herdsman.core.references import key_of
from herdsman.core.serving import CONFIG_DIGEST, CONTAINER, config_of
from herdsman.core.world import Key, PodFacts, ServerFacts
from herdsman.local.home import Home
from herdsman.local.json_files import read_object, write_json
from herdsman.local.machine import Machine
from herdsman.local.pod_facts import pod_facts
from herdsman.local.pod_template import read_pod_template
from herdsman.local.processes import PodPlace, Processes, ProcessState
from herdsman.local.scheduler import Request, shortage
from herdsman.local.secrets_here import absent_secret

RESTARTS = 3
"""A server that ends by itself is started again this often by one `herdsman run`."""
PROBE_SECONDS = 1.0
"""How long /readyz may take, and how old its answer may be."""


@dataclass(frozen=True)
class ServerRecord:
    """A Deployment as it was applied."""

    name: str
    owner: Key
    uid: str
    generation: int
    """The generation of the ModelServer that it was made from."""
    digest: str
    """Of the configuration and of how it is run: another one needs another process."""
    port: int
    config: str
    """The name of its ConfigMap."""
    configs: tuple[str, ...]
    """This one, and those of before that were not removed yet."""
    manifest: Manifest

    @property
    def replicas(self) -> int:
        """How many are wanted; on one machine one process stands for all of them."""
        return int(self.manifest["spec"].get("replicas", 1))


class Servers:
    """The servers of a home."""

    def __init__(self, home: Home, processes: Processes, machine: Machine) -> None:
        self._home = home
        self._processes = processes
        self._machine = machine
        self._starts: dict[str, int] = {}
        self._hindered: dict[str, PodFacts] = {}
        self._probes: dict[str, tuple[float, bool]] = {}

    def apply(self, manifest: Manifest, owner: AnyResource) -> None:
        """Record the Deployment; its configuration must have been applied before."""
        name, config_name = manifest["metadata"]["name"], config_of(manifest) or ""
        config = json.loads(self._config(config_name).read_bytes())
        kind, owner_name = key_of(owner)
        before = self.of(owner.metadata.uid)
        record = {
            "owner": {"kind": kind, "name": owner_name, "uid": owner.metadata.uid},
            "generation": owner.metadata.generation,
            "digest": _digest(manifest),
            "port": config["port"],
            "config": config_name,
            "configs": sorted({config_name, *(before.configs if before is not None else ())}),
            "manifest": manifest,
        }
        write_json(self._home.servers / name / "server.json", record)

    def records(self) -> list[ServerRecord]:
        """Return all servers, by name."""
        return [record for path in sorted(self._home.servers.glob("*/server.json")) if (record := _read(path))]

    def of(self, uid: str) -> ServerRecord | None:
        """Return the server of one resource."""
        return next((record for record in self.records() if record.uid == uid), None)

    def place(self, record: ServerRecord) -> PodPlace:
        """Return the place of its process."""
        return PodPlace(self._home.servers / record.name, 0)

    def state(self, record: ServerRecord) -> ProcessState | None:
        """Return how its process is; None where none was started."""
        return self._processes.state(self.place(record))

    def fingerprint(self, record: ServerRecord) -> object:
        """Return what changes whenever something happens to its process, or is found to keep it from starting."""
        return self.state(record), self._hindered.get(record.name)

    def running(self, record: ServerRecord) -> bool:
        """Whether its process lives."""
        state = self.state(record)
        return state is not None and state.running

    def settle(self, record: ServerRecord) -> None:
        """Do what a Deployment controller does: start, replace, stop, and start again what ended."""
        state = self.state(record)
        if state is not None and state.running:
            changed = self._running_digest(record) != record.digest
            if record.replicas == 0 or (changed and self._has_secrets(record)):
                self._starts.pop(record.name, None)
                self._processes.terminate(self.place(record))
            return
        if record.replicas and not self.gave_up(record) and self._may_start(record):
            self._start(record)

    def gave_up(self, record: ServerRecord) -> bool:
        """Whether it ended too often, or in a way that a restart does not mend, or may not start at all."""
        if record.name in self._hindered:
            return True
        starts, state = self._starts.get(record.name, 0), self.state(record)
        if starts == 0 or (state is not None and state.running):
            return False
        return starts > RESTARTS or (state is not None and state.exit_code in PERMANENT)

    def stirs(self, record: ServerRecord) -> bool:
        """Whether something may still happen to it by itself: it starts, is replaced, or does not answer yet."""
        if self.gave_up(record) or not record.replicas:
            return False
        _, answered = self._probes.get(record.name, (0.0, False))
        return not (self.running(record) and self._running_digest(record) == record.digest and answered)

    def terminate(self, record: ServerRecord) -> None:
        """Ask its process to end."""
        self._processes.terminate(self.place(record))

    def kill(self, record: ServerRecord) -> None:
        """Kill its process."""
        self._processes.kill(self.place(record))

    def delete(self, record: ServerRecord) -> None:
        """Forget a server whose process has ended, with its configuration and log."""
        for config in (*record.configs, names.server_adapters(record.owner.name)):
            self._config(config).unlink(missing_ok=True)
            Path(f"{self._config(config)}.report").unlink(missing_ok=True)
        shutil.rmtree(self._home.servers / record.name, ignore_errors=True)

    def forget_config(self, record: ServerRecord, config: str) -> None:
        """Remove a configuration that no process has any more."""
        path = self._home.servers / record.name / "server.json"
        data = read_object(path)
        if data is not None and config in record.configs and config != record.config:
            self._config(config).unlink(missing_ok=True)
            write_json(path, {**data, "configs": [name for name in record.configs if name != config]})

    async def facts(self, record: ServerRecord) -> ServerFacts:
        """Return what is observed of it; whether it is ready is asked of its /readyz."""
        state = self.state(record)
        running = state is not None and state.running
        ready = running and await self._ready(record)
        current = running and self._running_digest(record) == record.digest
        hindered = self._hindered.get(record.name)
        name = f"{record.name}-0"
        pod = pod_facts(name, self.place(record), state, CONTAINER) if state is not None else None
        return ServerFacts(
            replicas=record.replicas if running else 0,
            ready=record.replicas if ready else 0,
            url=f"http://127.0.0.1:{record.port}/v1" if running else None,
            observed_generation=record.generation if current else 0,
            pods=tuple(facts for facts in (hindered or pod,) if facts is not None),
            wanted=record.replicas,
            config=record.config if current else None,
            configs=record.configs,
            adapters=self._adapters(record) if ready else (),
        )

    def _adapters(self, record: ServerRecord) -> tuple[tuple[AdapterStatus, ...], ...]:
        """Return what the process says of its hot adapters: it writes a file beside the list of them."""
        config = read_object(self._config(record.config)) or {}
        try:
            report = AdapterReport.model_validate_json(Path(config.get("adaptersReport") or "").read_bytes())
        except (OSError, ValueError):
            return ()
        return (tuple(report.adapters),)

    async def _ready(self, record: ServerRecord) -> bool:
        asked, answer = self._probes.get(record.name, (0.0, False))
        if time.monotonic() - asked > PROBE_SECONDS or not answer:
            answer = await asyncio.to_thread(_is_ready, record.port)
            self._probes[record.name] = (time.monotonic(), answer)
        return answer

    def _may_start(self, record: ServerRecord) -> bool:
        template = read_pod_template(record.manifest)
        message = shortage(Request(record.name, gpus=template.gpus), self._machine)
        if message is None and _taken(record.port):
            message = f"another process listens on port {record.port}; stop it, or set spec.port to a free one"
        if message is not None:
            self._hinder(record, "Unschedulable", message)
        return message is None and self._has_secrets(record)

    def _has_secrets(self, record: ServerRecord) -> bool:
        """Whether this process' environment has what is in Secrets on a cluster; without it nothing may start."""
        absent = absent_secret(read_pod_template(record.manifest))
        if absent is not None:
            self._hinder(record, "SecretNotFound", absent)
        return absent is None

    def _hinder(self, record: ServerRecord, reason: str, message: str) -> None:
        self._hindered[record.name] = PodFacts(f"{record.name}-0", 0, "Pending", CONTAINER, None, reason, message)

    def _config(self, name: str) -> Path:
        return self._home.configs / f"{name}.json"

    def _start(self, record: ServerRecord) -> None:
        template = read_pod_template(record.manifest)
        place = self.place(record)
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": str(self._machine.cores),
            "HERDSMAN_THREADS": str(self._machine.cores),
            "CUDA_VISIBLE_DEVICES": ",".join(str(index) for index in range(template.gpus)),
            **template.environment,
        }
        self._probes.pop(record.name, None)
        self._starts[record.name] = self._starts.get(record.name, 0) + 1
        write_json(place.directory / "running.json", {"digest": record.digest})
        self._processes.start(place, template.command, environment, grace=template.grace, kept=True)

    def _running_digest(self, record: ServerRecord) -> str | None:
        running = read_object(self._home.servers / record.name / "running.json")
        return running["digest"] if running else None


def _digest(manifest: Manifest) -> str:
    """Return a digest of what makes a process another one."""
    pod = read_pod_template(manifest)
    config = manifest["spec"]["template"]["metadata"]["annotations"][CONFIG_DIGEST]
    parts = [config, pod.command, dict(pod.environment), dict(pod.secrets), pod.gpus]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> ServerRecord | None:
    data = read_object(path)
    if data is None:
        return None
    owner = data["owner"]
    return ServerRecord(
        name=path.parent.name,
        owner=Key(owner["kind"], owner["name"]),
        uid=owner["uid"],
        generation=data["generation"],
        digest=data["digest"],
        port=data["port"],
        config=data.get("config", path.parent.name),
        configs=tuple(data.get("configs", [path.parent.name])),
        manifest=data["manifest"],
    )


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_SECONDS)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
