"""Whether a server sleeps: decided from what its activators say, each time anew.

What is not known changes nothing: while an activator does not answer, the replicas stay as they are. A server falls
asleep only once it serves as its spec says, so a model that does not load is told of and not forgotten.
"""

from typing import NamedTuple

from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.core.site import Site
from herdsman.core.world import World

SHORTEST_WAIT = 0.5
"""Seconds until it is looked at again, at least."""


class Rest(NamedTuple):
    """Whether a server sleeps, and when that may change although nothing is heard."""

    asleep: bool
    look_again: float | None = None


AWAKE = Rest(asleep=False)


def rest(resource: ModelServer, world: World, site: Site) -> Rest:
    """Return whether the server should have no replicas now for want of requests."""
    scaling, server, activator = resource.spec.scale_to_zero, world.server, world.activator
    if scaling is None or site.local or resource.spec.replicas == 0 or server is None:
        return AWAKE
    demand = activator.demand if activator is not None else None
    busy = demand is not None and demand.requests > 0
    generation = resource.metadata.generation
    if server.asleep:
        # What has changed is tried once, so that what is wrong with it shows now and not to the next client.
        changed = 0 < server.observed_generation < generation
        return Rest(asleep=not (busy or changed))
    serves = server.ready > 0 and server.observed_generation >= generation
    if demand is None or activator is None or not activator.ready or busy or not serves:
        return AWAKE
    left = scaling.after_idle_seconds - demand.idle_seconds
    return Rest(asleep=True) if left <= 0 else Rest(asleep=False, look_again=max(left, SHORTEST_WAIT))


def is_asked_for_in_its_sleep(resource: ModelServer, world: World) -> bool:
    """Whether a server sleeps and somebody waits for it."""
    server, activator = world.server, world.activator
    sleeps = server is not None and server.asleep and resource.spec.replicas > 0
    return sleeps and activator is not None and activator.demand is not None and activator.demand.requests > 0
