"""The parent of one trainer or server process: it passes signals on and records how the process ended.

Run as a script by path, with the standard library only, so that it starts at once:
`python -I -S pod_process.py PLACE GRACE PARENT COMMAND...`. It survives a killed `herdsman run` just long enough to
stop the process gracefully and to write its exit code, which would otherwise be lost.

PLACE.process.json says who runs, PLACE.exit.json how it ended. SIGTERM is passed on, and after GRACE seconds the
process is killed; SIGUSR1 kills it at once. With a PARENT, the death of that process counts as SIGTERM; with 0
it becomes nobody's child, and the call returns once it is recorded.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from types import FrameType

_PR_SET_PDEATHSIG = 1
_SIGNALS = {signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM, signal.SIGINT, signal.SIGHUP}


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies; without effect where there is no prctl."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def write(path: str, value: Mapping[str, object]) -> None:
    """Write JSON so that it survives a crash."""
    beside = f"{path}.tmp"
    with open(beside, "w", encoding="utf-8") as file:  # noqa: PTH123 - pathlib takes as long to import as all the rest
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)  # noqa: PTH105


def start_time(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot; with the process id it names a process for good."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None


def boot_id() -> str:
    """Return what names the present boot of this machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123
            return file.read().strip()
    except OSError:
        return ""


class _Pod:
    def __init__(self, grace: int) -> None:
        self.grace = grace
        self.child = 0
        self.stopped = False

    def on_signal(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGTERM and not self.stopped:
            self.stopped = True
            self._send(signal.SIGTERM, group=False)
            signal.alarm(self.grace)
        elif number in (signal.SIGUSR1, signal.SIGALRM):
            self.stopped = True
            self._send(signal.SIGKILL, group=True)

    def _send(self, number: int, *, group: bool) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.child, number)

    def run(self, command: list[str], parent: int) -> int:
        """Start the process, wait for its end, kill what it left behind, and return its exit code, or 128 + signal."""
        me = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self.child = os.fork()
        if self.child == 0:
            _become(command, me if parent else 0)
        for number in _SIGNALS:
            signal.signal(number, self.on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        _, status = os.waitpid(self.child, 0)
        signal.alarm(0)
        self._send(signal.SIGKILL, group=True)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code


def _become(command: list[str], parent: int) -> None:
    """Turn this fresh child into the command, in a process group of its own; never returns."""
    os.setpgid(0, 0)
    if parent:
        die_with_parent()
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    try:
        os.execvp(command[0], command)  # noqa: S606 - an argv list, no shell
    except OSError as error:
        os.write(2, f"cannot start {command[0]}: {error.strerror}\n".encode())
        os._exit(127)


def _detach() -> int:
    """Go on in a child of nobody's, in a session of its own; the caller ends once the returned descriptor is closed."""
    read_end, write_end = os.pipe()
    if os.fork():
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    os.close(read_end)
    os.setsid()
    return write_end


def main(arguments: list[str]) -> None:
    """Run one pod's process from start to record."""
    place, grace, parent, command = arguments[0], int(arguments[1]), int(arguments[2]), arguments[3:]
    if parent:
        die_with_parent()
        if os.getppid() != parent:
            return
    told = None if parent else _detach()
    pod = _Pod(grace)
    identity = {"pid": os.getpid(), "startTime": start_time(os.getpid()), "boot": boot_id(), "started": time.time()}
    write(f"{place}.process.json", identity)
    if told is not None:
        os.close(told)
    code = pod.run(command, parent)
    write(f"{place}.exit.json", {"exitCode": code, "stopped": pod.stopped, "ended": time.time()})


if __name__ == "__main__":
    main(sys.argv[1:])
