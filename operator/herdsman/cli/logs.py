"""`herdsman logs`: what a run or a server wrote."""

import sys
import time
from pathlib import Path

from herdsman.cli.at_home import observe_one, open_home
from herdsman.cli.names import parse_kind, title
from herdsman.cli.refusals import Refused
from herdsman.core.world import Key
from herdsman.local.cluster import LocalCluster
from herdsman.local.processes import PodPlace, Processes

_LOOK_SECONDS = 0.2
_BLOCK = 1 << 16


def logs_command(
    kind: str, name: str, home_option: str | None, *, follow: bool, rank: int, attempt: int | None
) -> None:
    """Print the log of one pod; with `follow`, go on until its process ends."""
    cluster = open_home(home_option)
    key = Key(parse_kind(kind).kind, name)
    observe_one(cluster, key)
    place = _place(cluster, key, rank, attempt)
    processes = Processes()
    with place.log.open("rb") as log:
        while True:
            state = processes.state(place)  # before reading, so that what is written last is read
            while block := log.read(_BLOCK):
                sys.stdout.buffer.write(block)
            sys.stdout.flush()
            if not follow or state is None or not state.running:
                return
            time.sleep(_LOOK_SECONDS)


def _place(cluster: LocalCluster, key: Key, rank: int, attempt: int | None) -> PodPlace:
    server = next((record for record in cluster.servers.records() if record.owner == key), None)
    if server is not None:
        return _written(cluster.servers.place(server), key, cluster.home.root)
    records = [record for record in cluster.jobs.records() if record.owner == key]
    if not records:
        raise Refused(f"{title(key)} has not run yet")
    record = next((each for each in records if each.attempt == attempt), None) if attempt else records[-1]
    if record is None:
        raise Refused(f"{title(key)} has no attempt {attempt}; there are {', '.join(str(r.attempt) for r in records)}")
    if rank >= record.pods:
        raise Refused(f"attempt {record.attempt} of {title(key)} has {record.pods} pods; --rank counts from 0")
    return _written(cluster.jobs.places(record)[rank], key, cluster.home.root)


def _written(place: PodPlace, key: Key, home: Path) -> PodPlace:
    if not place.log.is_file():
        raise Refused(f"{title(key)} has not been started yet in {home}")
    return place
