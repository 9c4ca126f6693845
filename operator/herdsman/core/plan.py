"""Planning: which objects should exist for a resource, or why there are none yet."""

from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.core.plan_types import Plan
from herdsman.core.site import Site
from herdsman.core.world import World


def plan(resource: AnyResource, world: World, site: Site) -> Plan:
    """Return what should exist for the resource now; the same input gives the same plan."""
    raise NotImplementedError
