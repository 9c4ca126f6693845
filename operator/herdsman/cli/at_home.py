"""How the resources of a home stand at this moment, looked at without changing anything."""

import asyncio

from herdsman.cli.names import title
from herdsman.cli.observed import Observed
from herdsman.cli.refusals import Refused
from herdsman.cluster import Invalid
from herdsman.core.plan import plan
from herdsman.core.status import invalid_status, status
from herdsman.core.world import Key
from herdsman.local.cluster import LocalCluster
from herdsman.local.home import Home, local_site
from herdsman.local.machine import this_machine


def open_home(home_option: str | None) -> LocalCluster:
    """Return the cluster of a home that exists; raises Refused."""
    home = Home.at(home_option)
    if not home.exists:
        raise Refused(f"nothing was applied in {home.root} yet; herdsman run PATH applies manifests")
    home.check_format()
    return LocalCluster(home, this_machine())


def observe_all(cluster: LocalCluster, keys: list[Key]) -> list[Observed]:
    """Return the resources with their status as of now."""
    return asyncio.run(_observe_all(cluster, keys))


def observe_one(cluster: LocalCluster, key: Key) -> Observed:
    """Return one resource with its status as of now; raises Refused where there is none."""
    if cluster.store.manifest(key) is None:
        names = [other.name for other in cluster.store.all() if other.kind == key.kind]
        known = f"; there are {', '.join(names)}" if names else f"; there is no {key.kind} here"
        raise Refused(f"{title(key)} does not exist in {cluster.home.root}{known}")
    return observe_all(cluster, [key])[0]


async def _observe_all(cluster: LocalCluster, keys: list[Key]) -> list[Observed]:
    site = local_site(cluster.home)
    found = []
    for key in keys:
        resource = cluster.store.read(key)
        manifest = cluster.store.manifest(key) or {}
        if resource is None:
            continue
        if isinstance(resource, Invalid):
            present = invalid_status(resource.status, resource.generation, resource.problems, cluster.now(), key.kind)
        else:
            world = await cluster.observe(resource)
            present = status(resource, plan(resource, world, site), world)
        found.append(Observed(key, manifest, present))
    return found
