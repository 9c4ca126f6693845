"""Planning: which objects should exist for a resource, or why there are none yet.

Pure and level-triggered: the same resource, world and site give the same plan, and a plan made again after it was
carried out is the same plan.
"""

from collections.abc import Iterable
from dataclasses import replace

from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.status import ConditionType, Reason
from herdsman.core import conditions, gates, names, preflight, volumes
from herdsman.core.attempts import seconds_worked
from herdsman.core.hot_adapters import hot_adapters
from herdsman.core.inputs import Inputs, resolve
from herdsman.core.jobs import AttemptOptions, attempt_manifests, frame
from herdsman.core.kinds import REGISTRY, RUN_KINDS, model_server
from herdsman.core.plan_types import Manifest, Plan, Problem
from herdsman.core.pods import owner_references
from herdsman.core.run_status import Run, RunState, judge, seconds_left
from herdsman.core.scale_to_zero import is_asked_for_in_its_sleep, rest
from herdsman.core.serving import server_manifests, unwanted_children
from herdsman.core.site import Site
from herdsman.core.world import Key, World

LOOK_AGAIN = 30.0
"""Seconds until a waiting resource is planned again, should no event tell that its inputs are there."""


def plan(resource: AnyResource, world: World, site: Site) -> Plan:
    """Return what should exist for the resource now."""
    sketch = REGISTRY[resource.kind].estimate(resource, world)
    started = resource.status is not None and bool(resource.status.attempts)
    recorded = resource.status.estimate if resource.status is not None else None
    base = Plan(estimate=recorded if started else sketch.estimate)
    if isinstance(resource, ModelServer):
        return _serve(resource, world, site, base)
    run = judge(resource, world)
    ended = (ConditionType.COMPLETE, ConditionType.FAILED)
    if any(conditions.holds(resource.status, kind) for kind in ended):
        return _remembered(resource, run, world, base)
    if run.state is RunState.SUCCEEDED:
        return replace(base, attempt=run.number)
    return _run(resource, run, world, site, base, sketch.checkpoint_bytes)


def _run(resource: AnyResource, run: Run, world: World, site: Site, base: Plan, checkpoint_bytes: int) -> Plan:
    assert not isinstance(resource, ModelServer)
    spec, rules, target = resource.spec, RUN_KINDS[resource.kind], volumes.writes(resource)
    assert target is not None, "a run has a workspace"
    alive = run.state is RunState.LIVE
    overdue = run.state is RunState.FAILED and run.job is not None and run.job.state not in ("Complete", "Failed")
    if run.state is RunState.FAILED and not overdue:
        return replace(base, attempt=run.number)
    checks = run.planned.preflight if run.planned is not None else preflight.is_due(resource, run.attempts, site)
    base = replace(base, preflight=checks)

    inputs = resolve(resource, rules.needs(resource), world, site)
    missing = volumes.own_claim_missing(spec.workspace, world, site)
    waiting = (*inputs.waiting, *gates.closed(resource, world), *([missing] if missing is not None else []))
    refused = (
        rules.problem(resource)
        or inputs.refused
        or volumes.path_conflict(target, world.writers)
        or volumes.reads_own_output(target, inputs.found.values())
        or volumes.access_problem(spec.workspace, target, spec.compute.nodes, inputs.found.values(), world, site)
        or (None if waiting else rules.contract(resource, inputs, world) or gates.outdated(resource, inputs, world))
    )
    if refused is not None and not (alive or overdue):
        return replace(base, refused=refused, waiting_for=waiting, requeue_after=LOOK_AGAIN)
    if refused is not None or waiting:  # a living attempt goes on with what it started with
        return replace(base, waiting_for=waiting, attempt=run.number if alive else None, requeue_after=LOOK_AGAIN)
    if spec.suspend and not alive:
        return base
    not_before = run.not_before(local=site.local)
    if not_before is not None and not_before > world.now:
        wait = (not_before - world.now).total_seconds()
        return replace(base, not_before=not_before, requeue_after=wait)

    assert rules.config is not None
    compute = preflight.on_cpu(spec.compute) if checks else spec.compute
    config = rules.config(resource, frame(resource, compute, target, run.number, site), inputs, site)
    deadline = spec.active_deadline_seconds
    ended = [attempt for attempt in run.attempts if attempt.number < run.number]
    options = AttemptOptions(
        reads=_claims(inputs),
        suspend=spec.suspend or overdue,
        seconds_left=None if deadline is None else deadline - seconds_worked(ended),
        checkpoint_bytes=0 if checks else checkpoint_bytes,
        preflight=checks,
        env=[*rules.environment(resource, site), *rules.keys(resource, inputs)],
    )
    if checks:
        config = preflight.config_of(config, spec.compute)
    policy = spec.model_copy(update={"compute": compute})
    claim = volumes.claim_manifest(resource, spec.workspace, spec.compute.nodes, owner_references(resource))
    children = [*([claim] if claim is not None else []), *attempt_manifests(resource, policy, config, options, site)]
    if (conflict := _name_conflict(children, world)) is not None:
        return replace(base, refused=conflict, requeue_after=LOOK_AGAIN)
    left = seconds_left(resource, run, world.now)
    return replace(base, children=tuple(children), attempt=run.number, requeue_after=None if left is None else left + 1)


def _remembered(resource: AnyResource, run: Run, world: World, base: Plan) -> Plan:
    """Return the plan of a run whose end is recorded: nothing but to forget its Jobs in time."""
    assert not isinstance(resource, ModelServer)
    base = replace(base, attempt=run.attempts[-1].number if run.attempts else None)
    wait, end = resource.spec.ttl_seconds_after_finished, run.attempts[-1].ended if run.attempts else None
    if wait is None or end is None or not world.jobs:
        return base
    left = wait - (world.now - end).total_seconds()
    return replace(base, requeue_after=left) if left > 0 else replace(base, expired=tuple(sorted(world.jobs)))


def _serve(resource: ModelServer, world: World, site: Site, base: Plan) -> Plan:
    rules = REGISTRY[resource.kind]
    inputs = resolve(resource, rules.needs(resource), world, site)
    waiting = (*inputs.waiting, *gates.closed(resource, world))
    refused = model_server.impossible(resource, site) or inputs.refused
    if refused is None and not waiting:
        refused = rules.contract(resource, inputs, world) or gates.outdated(resource, inputs, world)
    if is_asked_for_in_its_sleep(resource, world):
        base = replace(base, wake=names.server(resource.metadata.name))
    if refused is not None or waiting:
        return replace(base, refused=refused, waiting_for=waiting, requeue_after=LOOK_AGAIN)
    now, activator = rest(resource, world, site), world.activator
    activated = activator is not None and activator.ready > 0
    hot = hot_adapters(resource, inputs, world, site)
    children = server_manifests(
        resource,
        model_server.config(resource, inputs, site),
        _claims(inputs) | hot.claims,
        site,
        hot.listed(site),
        asleep=now.asleep,
        activated=activated,
    )
    if (conflict := _name_conflict(children, world)) is not None:
        return replace(base, refused=conflict, requeue_after=LOOK_AGAIN)
    unwanted = unwanted_children(resource, children, world.server)
    broken = any(adapter.problem is not None for adapter in hot.plans)
    again = LOOK_AGAIN if broken and now.look_again is None else now.look_again
    planned = replace(base, children=tuple(children), unwanted=tuple(unwanted), wake=None)
    return replace(planned, adapters=hot.plans, requeue_after=again)


def _claims(inputs: Inputs) -> frozenset[str]:
    return frozenset(found.claim for found in inputs.found.values() if found.server is None)


def _name_conflict(children: Iterable[Manifest], world: World) -> Problem | None:
    """Return that a child's name belongs to an object of somebody else, which is never overwritten."""
    for child in children:
        key = Key(child["kind"], child["metadata"]["name"])
        if key in world.foreign:
            return Problem(
                Reason.NAME_CONFLICT,
                f"metadata.name: {key} exists already and does not belong to this resource.",
                hint=f"Remove that {key.kind}, or give this resource another name.",
                field="metadata.name",
            )
    return None
