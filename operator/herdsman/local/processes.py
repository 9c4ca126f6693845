"""Starts, watches and stops the process of a pod; a process id recycled by the kernel is never taken for ours."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herdsman.local import pod_process
from herdsman.local.json_files import read_object


@dataclass(frozen=True)
class PodPlace:
    """The files of one pod: who runs it, how it ended, its last words and its log."""

    directory: Path
    index: int

    def _file(self, suffix: str) -> Path:
        return self.directory / f"{self.index}.{suffix}"

    @property
    def process(self) -> Path:
        """Written by the pod's parent process when it starts."""
        return self._file("process.json")

    @property
    def exit(self) -> Path:
        """Written by the pod's parent process when it has ended."""
        return self._file("exit.json")

    @property
    def termination(self) -> Path:
        """The termination message, written by the trainer."""
        return self._file("termination")

    @property
    def log(self) -> Path:
        """Output and errors, of all starts."""
        return self._file("log")


@dataclass(frozen=True)
class ProcessState:
    """How the process of a pod is."""

    running: bool
    pid: int | None = None
    started: float | None = None
    """Seconds since the epoch."""
    ended: float | None = None
    exit_code: int | None = None
    """128 + signal where a signal ended it; None while running, and where it was lost."""
    stopped: bool = False
    """Whether it was asked to stop."""
    lost: bool = False
    """Gone without a record of its end: the machine or everything on it was stopped."""


class Processes:
    """The processes of this machine's pods."""

    def __init__(self) -> None:
        self._children: dict[PodPlace, subprocess.Popen[bytes]] = {}
        self._ended: dict[PodPlace, ProcessState] = {}

    def start(
        self, place: PodPlace, command: Sequence[str], environment: Mapping[str, str], *, grace: int, kept: bool
    ) -> None:
        """Start a pod's process; a kept one stays when this process ends, any other one is stopped with it.

        It gets `grace` seconds between SIGTERM and SIGKILL. Raises OSError where the machine cannot start processes.
        """
        place.directory.mkdir(parents=True, exist_ok=True)
        self.forget(place)
        parent = "0" if kept else str(os.getpid())
        supervised = [sys.executable, "-I", "-S", pod_process.__file__, str(place.directory / str(place.index))]
        with place.log.open("ab") as log:
            child = subprocess.Popen(
                [*supervised, str(grace), parent, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment, "HERDSMAN_TERMINATION_FILE": str(place.termination)},
                cwd=place.directory,
                start_new_session=True,  # Ctrl-C in the terminal reaches `herdsman run` only
            )
        if kept:
            child.wait()
        else:
            self._children[place] = child

    def state(self, place: PodPlace) -> ProcessState | None:
        """Return how the pod's process is, or None where none was started."""
        if (known := self._ended.get(place)) is not None:
            return known
        child = self._children.get(place)
        if child is not None and child.poll() is None:
            return ProcessState(running=True, pid=child.pid, started=(read_object(place.process) or {}).get("started"))
        self._children.pop(place, None)
        process, end = read_object(place.process), read_object(place.exit)
        started = process.get("started") if process else None
        if end is not None:
            code, ended, stopped = end["exitCode"], end["ended"], end["stopped"]
            known = ProcessState(running=False, started=started, ended=ended, exit_code=code, stopped=stopped)
            self._ended[place] = known
            return known
        if process is not None and _lives(process):
            return ProcessState(running=True, pid=process["pid"], started=started)
        return ProcessState(running=False, started=started, lost=True) if process or child else None

    def forget(self, place: PodPlace) -> None:
        """Forget how the pod ended, before it starts once more; the log stays."""
        self._ended.pop(place, None)
        for path in (place.process, place.exit, place.termination):
            path.unlink(missing_ok=True)

    def terminate(self, place: PodPlace) -> None:
        """Ask the pod's process to save and end."""
        self._signal(place, signal.SIGTERM)

    def kill(self, place: PodPlace) -> None:
        """Kill the pod's process at once, with everything it started."""
        self._signal(place, signal.SIGUSR1)

    def _signal(self, place: PodPlace, number: signal.Signals) -> None:
        state = self.state(place)
        if state is None or not state.running or state.pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.pid, number)


def _lives(process: Mapping[str, Any]) -> bool:
    """Whether the recorded process, or anything of its session, still lives; never true for a recycled process id."""
    if process["boot"] != pod_process.boot_id():
        return False
    if process["startTime"] is None:  # no /proc here: the process id is all there is
        return _answers(process["pid"])
    leader = _stat(process["pid"])
    if leader is not None and leader[2] != process["startTime"]:
        return False
    if leader is not None and leader[0] not in "ZX":
        return True
    return any(stat[1] == process["pid"] and stat[0] not in "ZX" for stat in _all_stats())


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _stat(pid: int) -> tuple[str, int, str] | None:
    """Return a process's state letter, session and start time, or None where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rsplit(")", 1)[1].split()
    except OSError:
        return None
    return fields[0], int(fields[3]), fields[19]


def _all_stats() -> Iterator[tuple[str, int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))) is not None:
            yield stat
