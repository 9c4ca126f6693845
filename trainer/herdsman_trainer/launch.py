"""Starts the ranks of this pod and makes one end of theirs.

Rendezvous is static: every rank is told its number and the address of rank 0. The ranks are plain child processes and
not those of torchrun's elastic agent, because that one gives them 30 seconds after SIGTERM, which cuts a large
checkpoint, and turns every exit code into 1. `torchrun ... -m herdsman_trainer` works as well: RANK is set then, and
nothing is launched.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from herdsman.api.exit_codes import PERMANENT, ExitCode, TerminationMessage
from herdsman.api.job_config import Launch

TERMINATION_FILE = "HERDSMAN_TERMINATION_FILE"
DEFAULT_TERMINATION_FILE = "/dev/termination-log"
PEER_SECONDS = 30.0
"""How long the other ranks may take to end by themselves after one has failed."""
_POLL_SECONDS = 0.05


def needs_launch(launch: Launch, environment: Mapping[str, str]) -> bool:
    """Whether this process has to start ranks: there are several, and it is none of them."""
    return "RANK" not in environment and launch.nodes * launch.processes_per_node > 1


def rank_environments(launch: Launch, environment: Mapping[str, str], cpus: int) -> list[dict[str, str]]:
    """Return the environment of each rank of this pod; the pod's number is JOB_COMPLETION_INDEX, or 0."""
    node = int(environment.get("JOB_COMPLETION_INDEX", "0"))
    local = launch.processes_per_node
    common = {
        **environment,
        "WORLD_SIZE": str(launch.nodes * local),
        "LOCAL_WORLD_SIZE": str(local),
        "GROUP_RANK": str(node),
        "MASTER_ADDR": launch.master_address,
        "MASTER_PORT": str(launch.master_port),
    }
    common.setdefault("OMP_NUM_THREADS", str(max(1, cpus // local)))
    return [{**common, "RANK": str(node * local + index), "LOCAL_RANK": str(index)} for index in range(local)]


def run_ranks(launch: Launch, command: Sequence[str]) -> int:
    """Start `command` as each of this pod's ranks, wait for all, write one termination message, return one exit code.

    SIGTERM and SIGINT are passed on, and then there is no limit here: the ranks save, and the platform's grace period
    is the limit. When a rank fails, the others get PEER_SECONDS to end by themselves.
    """
    with tempfile.TemporaryDirectory(prefix="herdsman-ranks-") as folder:
        messages = [Path(folder) / f"rank-{index}.json" for index in range(launch.processes_per_node)]
        children: list[subprocess.Popen[bytes]] = []
        with _passing_on_signals(children):
            for environment, message in zip(
                rank_environments(launch, os.environ, os.cpu_count() or 1), messages, strict=True
            ):
                children.append(subprocess.Popen(list(command), env={**environment, TERMINATION_FILE: str(message)}))
            try:
                ended, killed = _wait(children)
            finally:
                _kill(child for child in children if child.poll() is None)
        codes = [0 if index in killed else _code_of(child.returncode) for index, child in enumerate(children)]
        decisive = decisive_rank(codes, ended)
        _write_message(messages[decisive], codes[decisive], decisive)
        return exit_code_of(codes[decisive])


def decisive_rank(codes: Sequence[int], ended: Sequence[int] = ()) -> int:
    """Return the index of the rank whose end tells the story: bad input or divergence first, then a temporary fault or
    a stop, then a death by signal, then any other failure (mostly a lost peer), then rank 0's success.

    Of several that failed alike it is the one that ended first; `ended` are the indices in the order of their ends.
    """
    order = {index: place for place, index in enumerate(ended)}

    def weight(code: int) -> int:
        if code in PERMANENT:
            return 0
        if code == ExitCode.INTERRUPTED:
            return 1
        return 4 if code == 0 else 2 if code < 0 else 3

    def key(index: int) -> tuple[int, int, int]:
        code = codes[index]
        return weight(code), order.get(index, len(order)) if code else 0, index

    return min(range(len(codes)), key=key)


def exit_code_of(returncode: int) -> int:
    """Return the exit code a shell would report: 128 + N for a death by signal N."""
    return 128 - returncode if returncode < 0 else returncode


def termination_path(environment: Mapping[str, str]) -> Path:
    """Return the file that receives the termination message."""
    return Path(environment.get(TERMINATION_FILE, DEFAULT_TERMINATION_FILE))


def _wait(children: list[subprocess.Popen[bytes]]) -> tuple[list[int], set[int]]:
    """Wait for all children; returns their indices in the order in which they ended, and those that had to be killed
    after another one failed.
    """
    deadline: float | None = None
    ended: list[int] = []
    while True:
        codes = [child.poll() for child in children]
        ended += [index for index, code in enumerate(codes) if code is not None and index not in ended]
        if len(ended) == len(children):
            return ended, set()
        failed = any(child.returncode not in (None, 0) for child in children)
        if failed and deadline is None:
            deadline = time.monotonic() + PEER_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            late = {index for index, child in enumerate(children) if child.poll() is None}
            _kill(children[index] for index in late)
            return ended, late
        time.sleep(_POLL_SECONDS)


def _kill(children: Iterable[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.kill()
        child.wait()


def _code_of(returncode: int) -> int:
    """Return the exit code of a rank; one that SIGTERM ended while it was still importing has nothing to save."""
    return int(ExitCode.INTERRUPTED) if returncode == -signal.SIGTERM else returncode


def _write_message(written: Path, returncode: int, rank: int) -> None:
    try:
        message = TerminationMessage.model_validate_json(written.read_bytes())
    except (OSError, ValidationError):
        message = _unspoken(returncode, rank)
    termination_path(os.environ).write_bytes(message.to_bytes())


def _unspoken(returncode: int, rank: int) -> TerminationMessage:
    """Return the message for a rank that ended without one."""
    if returncode == ExitCode.INTERRUPTED:
        return TerminationMessage(reason="Interrupted", message=f"Local rank {rank} was stopped before it began.")
    if returncode == -signal.SIGKILL:
        return TerminationMessage(
            reason="OutOfMemory",
            message=f"Local rank {rank} was killed by SIGKILL, most likely for want of memory.",
            hint="Raise compute.resources.memory, or lower recipe.batch.microSequences.",
        )
    how = f"was killed by signal {-returncode}" if returncode < 0 else f"ended with exit code {returncode}"
    return TerminationMessage(reason="Crashed", message=f"Local rank {rank} {how} without a message; see its log.")


@contextmanager
def _passing_on_signals(children: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    def pass_on(number: int, _: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
