"""`herdsman stop`: ends what works in a home, after saving."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable

from herdsman.cli.at_home import observe_one, open_home
from herdsman.cli.names import parse_kind, title
from herdsman.cli.refusals import USAGE, Refused
from herdsman.core.world import Key
from herdsman.local.cluster import LocalCluster
from herdsman.local.lock import holder

_LOOK_SECONDS = 0.1
_PATIENCE_SECONDS = 600.0
"""Longer than any run takes to save; each has its own grace period, after which it is killed."""


def stop_command(kind: str | None, name: str | None, home_option: str | None) -> None:
    """Stop one resource, or the run at work, all runs left behind and all servers; wait until they have ended."""
    if kind is not None and name is None:
        raise Refused(f"which {parse_kind(kind).kind}? herdsman stop KIND NAME, or herdsman stop for all", USAGE)
    cluster = open_home(home_option)
    if kind is not None and name is not None:
        _stop_one(cluster, Key(parse_kind(kind).kind, name))
    else:
        _stop_all(cluster)


def _stop_one(cluster: LocalCluster, key: Key) -> None:
    observe_one(cluster, key)
    if not working(cluster, key):
        _say(f"{title(key)} is not running")
        return
    if holder(cluster.home.lock_file) is not None:
        cluster.home.stops.mkdir(exist_ok=True)
        (cluster.home.stops / f"{key.kind}-{key.name}").touch()
    cluster.stop(key)
    wait_until(lambda: not working(cluster, key))
    _say(f"{title(key)} stopped; herdsman run goes on from there")


def _stop_all(cluster: LocalCluster) -> None:
    pid = holder(cluster.home.lock_file)
    busy = [key for key in cluster.store.all() if working(cluster, key)]
    if pid is not None:
        _say(f"stopping herdsman run (process {pid}); runs save what they have")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: holder(cluster.home.lock_file) is None)
    for key in busy:
        cluster.stop(key)
    wait_until(lambda: not any(working(cluster, key) for key in busy))
    for key in busy:
        _say(f"{title(key)} stopped")
    if pid is None and not busy:
        _say("nothing is running here")


def working(cluster: LocalCluster, key: Key) -> bool:
    """Whether a process of the resource lives."""
    jobs = any(record.owner == key for record in cluster.running_jobs())
    return jobs or any(record.owner == key and cluster.servers.running(record) for record in cluster.servers.records())


def wait_until(done: Callable[[], bool]) -> None:
    """Wait until something is done; raises Refused when that takes too long."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise Refused(f"still not stopped after {_PATIENCE_SECONDS:.0f} s; herdsman get tells how it stands")
        time.sleep(_LOOK_SECONDS)


def _say(sentence: str) -> None:
    sys.stdout.write(f"{sentence}\n")
    sys.stdout.flush()
