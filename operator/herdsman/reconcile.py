"""The one story: read, observe, plan, apply, report."""

from dataclasses import dataclass

from herdsman.api.v1alpha1.status import Status
from herdsman.cluster import Cluster, Invalid
from herdsman.core.plan import plan
from herdsman.core.site import Site
from herdsman.core.status import invalid_status, status
from herdsman.core.world import Key


@dataclass(frozen=True)
class Outcome:
    """What one reconciliation found."""

    status: Status | None
    """The status as reported; None when the resource is gone."""
    requeue_after: float | None = None
    """Seconds after which to look again even if nothing is heard."""


async def reconcile(key: Key, cluster: Cluster, site: Site) -> Outcome:
    """Bring what exists for one resource in line with its spec, and say so in its status.

    Level-triggered and idempotent: it may be called at any time, any number of times, and after a crash at any point.
    Whatever it raises means "try again later" or a bug; invalid specs and missing references are conditions.
    """
    resource = await cluster.read(key)
    if resource is None:
        return Outcome(None)
    if isinstance(resource, Invalid):
        report = invalid_status(resource.status, resource.generation, resource.problems, cluster.now(), key.kind)
        await cluster.report(key, report)
        return Outcome(report)
    world = await cluster.observe(resource)
    planned = plan(resource, world, site)
    if planned.unwanted:
        await cluster.remove(resource, planned.unwanted)
    await cluster.apply(resource, planned.children)
    if planned.wake is not None:
        await cluster.wake(resource, planned.wake)
    if planned.expired:
        await cluster.forget_jobs(resource, planned.expired)
    report = status(resource, planned, world)
    await cluster.report(key, report)
    return Outcome(report, planned.requeue_after)
