"""`herdsman run`: apply, follow, and tell."""

import asyncio
import os
import signal
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from herdsman.api.v1alpha1.status import Status
from herdsman.cli.describe import report_path
from herdsman.cli.json_view import JsonView, state
from herdsman.cli.live_view import LiveView
from herdsman.cli.manifests import checked_manifests
from herdsman.cli.names import title
from herdsman.cli.plain_view import PlainView
from herdsman.cli.refusals import INTERRUPTED, REFUSED, USAGE, Refused
from herdsman.cli.rows import Inputs
from herdsman.cli.summary import print_summary
from herdsman.cli.view import View
from herdsman.core.references import direct
from herdsman.core.world import Key
from herdsman.local.cluster import LocalCluster
from herdsman.local.follow import Ending, Follower, as_asked, with_inputs
from herdsman.local.home import DEFAULT_HOME, PYTHON_VARIABLE, Home, local_site
from herdsman.local.lock import HomeLock
from herdsman.local.machine import this_machine
from herdsman.local.manifests import Manifests
from herdsman.local.volumes import parse_volumes

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_command(
    paths: Sequence[Path], volumes: Sequence[str], home_option: str | None, cores: int | None, *, as_json: bool
) -> int:
    """Apply the manifests, follow them to their end, and return the exit code."""
    mapped = parse_volumes(volumes)
    manifests = checked_manifests(paths) if paths else Manifests()
    home = Home.at(home_option)
    if not paths and not home.exists:
        raise Refused(f"nothing was applied in {home.root} yet; give the manifests: herdsman run PATH", USAGE)
    _check_trainer()
    home.create()
    with HomeLock(home.lock_file):
        cluster = LocalCluster(home, this_machine(cores))
        cluster.volumes.remember(mapped)
        keys = _apply(cluster, manifests)
        for request in home.stops.glob("*"):
            request.unlink()
        return asyncio.run(_follow(cluster, with_inputs(keys, cluster), home_option, as_json=as_json))


def _check_trainer() -> None:
    """Raise Refused where the interpreter of pods is this one and lacks what a trainer needs."""
    if PYTHON_VARIABLE not in os.environ and find_spec("torch") is None:
        what = "this Python has no trainer: pip install 'herdsman[trainer,server]'"
        raise Refused(f"{what}, or name one that has it with {PYTHON_VARIABLE}=/path/to/python")


def _apply(cluster: LocalCluster, manifests: Manifests) -> list[Key]:
    """Store the manifests, all or none, and return what is to be followed; raises Refused."""
    applications = cluster.store.compare(manifests.resources.values(), cluster.now())
    refusals = [
        f"{manifests.sources[each.key]}: {title(each.key)}: {each.refusal}"
        for each in applications
        if each.action == "refused"
    ]
    if refusals:
        raise Refused("nothing was applied\n" + "\n".join(refusals), REFUSED)
    for claim in manifests.claims:
        cluster.volumes.make(claim)
    cluster.store.commit(applications)
    return [each.key for each in applications] or cluster.store.all()


async def _follow(cluster: LocalCluster, keys: list[Key], home_option: str | None, *, as_json: bool) -> int:
    console = Console(highlight=False)
    known = {key: cluster.store.status(key) or Status() for key in keys}
    inputs = {key: [source for _, source in direct(resource)] for key, resource in cluster.resources().items()}
    view = _view(console, dict(known), inputs, as_json=as_json)
    follower = Follower(cluster, local_site(cluster.home), keys, view)
    loop = asyncio.get_running_loop()
    for number in _STOPPING:
        loop.add_signal_handler(number, _on_signal, follower, view)
    with view:
        ending = await follower.run()
    code = _exit_code(ending)
    if isinstance(view, JsonView):
        resources = [state(key, status) for key, status in ending.statuses.items()]
        view.emit({"summary": {"exitCode": code, "interrupted": ending.interrupted, "resources": resources}})
        return code
    if known == ending.statuses and all(as_asked(status) for status in known.values()):
        console.print(f"Nothing to do: {_all(len(keys))} as asked.")
    console.print()
    home = f" --home {home_option}" if home_option and home_option != DEFAULT_HOME else ""
    found = {key: report_path(status, cluster.home) for key, status in ending.statuses.items()}
    reports = {key: path for key, path in found.items() if path is not None}
    print_summary(console, ending, cluster.resources(), inputs, home, reports)
    if ending.interrupted:
        told = "Stopped. What was saved counts" if follower.stops == 1 else "Killed. The newest checkpoints count"
        console.print(f"\n{told}: run the same command again to go on.")
    return code


def _view(console: Console, statuses: dict[Key, Status], inputs: Inputs, *, as_json: bool) -> View:
    if as_json:
        return JsonView(console)
    return LiveView(console, statuses, inputs) if console.is_terminal else PlainView(console, statuses, inputs)


def _on_signal(follower: Follower, view: View) -> None:
    follower.stop()
    again = follower.stops > 1
    view.said("Killing everything" if again else "Stopping: runs save what they have. Ctrl-C once more kills them")


def _exit_code(ending: Ending) -> int:
    if ending.interrupted:
        return INTERRUPTED
    return 0 if ending.succeeded else REFUSED


def _all(count: int) -> str:
    return "the one resource is" if count == 1 else f"all {count} resources are"
