"""Runs functions in child processes of the test: as ranks of one run, or to be killed."""

import os
import socket
import sys
import traceback
from collections.abc import Callable


def free_port() -> int:
    """Return a TCP port nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def in_child(work: Callable[[], object], **environment: str) -> int:
    """Fork, run `work` in the child, and return its exit code: 0, 1 after an exception, or −N for signal N."""
    return wait_for(start_child(work, **environment))


def start_child(work: Callable[[], object], **environment: str) -> int:
    """Fork and run `work` in the child; returns the child's process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ.update(environment)
        work()
        code = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_for(pid: int) -> int:
    """Wait for a child and return its exit code, −N for a death by signal N."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def as_ranks(work: Callable[[], object], world_size: int = 2, nodes: int = 1) -> list[int]:
    """Run `work` in `world_size` forked children with torchrun's environment; returns their exit codes by rank."""
    port = str(free_port())
    common = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    local = world_size // nodes
    places = [{"RANK": str(r), "LOCAL_RANK": str(r % local), "GROUP_RANK": str(r // local)} for r in range(world_size)]
    children = [start_child(work, **common, LOCAL_WORLD_SIZE=str(local), **place) for place in places]
    return [wait_for(pid) for pid in children]
