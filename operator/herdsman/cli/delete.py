"""`herdsman delete`: forgets a resource, and with --purge also what it wrote."""

import sys

from herdsman.cli.at_home import observe_one, open_home
from herdsman.cli.names import command_name, parse_kind, title
from herdsman.cli.refusals import Refused
from herdsman.cli.stop import wait_until, working
from herdsman.cluster import Invalid
from herdsman.core.references import direct
from herdsman.core.volumes import writes
from herdsman.core.world import Key
from herdsman.local.cluster import LocalCluster
from herdsman.local.follow import as_asked
from herdsman.local.lock import HomeLock


def delete_command(kind: str, name: str, home_option: str | None, *, purge: bool) -> None:
    """Stop and forget a resource; raises HomeBusy during a run, and Refused where something at work needs it."""
    cluster = open_home(home_option)
    key = Key(parse_kind(kind).kind, name)
    with HomeLock(cluster.home.lock_file):
        observe_one(cluster, key)
        _check_users(cluster, key)
        cluster.stop(key)
        wait_until(lambda: not working(cluster, key))
        resource = cluster.store.read(key)
        target = None if resource is None or isinstance(resource, Invalid) else writes(resource)
        cluster.erase(key)
        sys.stdout.write(f"{title(key)} deleted\n")
        if target is None:
            return
        where = cluster.home.volumes / target.claim / target.path
        if purge:
            for path in cluster.volumes.purge(target.claim, target.path):
                sys.stdout.write(f"{path} deleted\n")
        elif where.exists():
            sys.stdout.write(f"{where} stays; delete it before you apply a new {title(key)} that writes there\n")


def _check_users(cluster: LocalCluster, key: Key) -> None:
    """Refuse while a process of a resource that refers to this one lives; warn of those that are not done."""
    resources = cluster.resources()
    users = [user for user, resource in resources.items() if any(source == key for _, source in direct(resource))]
    if at_work := [user for user in users if working(cluster, user)]:
        user = at_work[0]
        raise Refused(f"{title(user)} is at work and uses {title(key)}; first: herdsman stop {command_name(user)}")
    for user in users:
        status = resources[user].status
        if status is None or not as_asked(status):
            sys.stderr.write(f"{title(user)} refers to {title(key)} and cannot run without it\n")
