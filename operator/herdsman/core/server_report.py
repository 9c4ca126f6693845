"""The status of a server: whether it answers, whether all of it does, and what is wrong where it does not.

Ready is about the clients: it holds as long as any replica answers, also while a change is rolled out or cannot be.
How far the last change is, Progressing and the phase tell.
"""

from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.status import AdapterStatus, ConditionType, Failure, Reason, Status
from herdsman.core import names
from herdsman.core.conditions import Finding, find, phase, settle, shortened
from herdsman.core.endings import cause_of, has_fallen
from herdsman.core.findings import accepted, dependencies, known, refusal, sentence
from herdsman.core.plan_types import Plan
from herdsman.core.serving import selector
from herdsman.core.troubles import platform_failure
from herdsman.core.world import Key, ServerFacts, World

SLEEPS = "Nobody asks, so no replica is kept; the next request has one started."
_AT_REST = (Reason.READY, Reason.SCALED_TO_ZERO)


def server_status(resource: ModelServer, plan: Plan, world: World) -> Status:
    """Return the status of a ModelServer."""
    previous, generation = resource.status or Status(), resource.metadata.generation
    server = world.server
    trouble = _trouble(server)
    progressing = _progressing(resource, plan, world, trouble)
    findings = {
        ConditionType.ACCEPTED: accepted(plan),
        ConditionType.DEPENDENCIES_READY: dependencies(plan, alive=server is not None),
        ConditionType.PROGRESSING: progressing,
        ConditionType.READY: _ready(resource, world, progressing, trouble),
    }
    conditions = settle(previous.conditions, findings, generation, world.now)
    refused = refusal(plan.refused) if plan.refused is not None else None
    return Status(
        phase=phase(conditions),
        observed_generation=generation,
        conditions=conditions,
        failure=refused or (trouble if progressing.reason not in _AT_REST else None),
        estimate=known(plan.estimate),
        url=server.url if server is not None else None,
        replicas=server.replicas if server is not None else 0,
        ready_replicas=server.ready if server is not None else 0,
        selector=selector(resource),
        adapters=_adapters(resource, plan, server),
    )


def _adapters(resource: ModelServer, plan: Plan, server: ServerFacts | None) -> list[AdapterStatus]:
    """Return how each hot adapter is: what the plan says against it, else what the replicas say that were heard."""
    problems = {planned.name: planned.problem for planned in plan.adapters}
    heard = [{adapter.name: adapter for adapter in replica} for replica in (server.adapters if server else ())]
    found = []
    for wanted in resource.spec.hot_adapters:
        said = [replica.get(wanted.name) for replica in heard]
        loaded = bool(said) and all(adapter is not None and adapter.loaded for adapter in said)
        against = next((adapter.message for adapter in said if adapter is not None and adapter.message), None)
        if (problem := problems.get(wanted.name)) is not None:
            against = sentence(problem)
        elif not loaded and against is None:
            against = "The replicas have not said yet that it is loaded."
        message = shortened(against, 1024) if against else None
        found.append(AdapterStatus(name=wanted.name, loaded=loaded, message=message))
    return found


def _progressing(resource: ModelServer, plan: Plan, world: World, trouble: Failure | None) -> Finding:
    server, waits = world.server, _waits_for(plan)
    if server is None and waits is not None:
        return Finding("False", Reason.PENDING, f"Nothing is started yet: {waits}")
    if resource.spec.replicas == 0:
        return Finding("False", Reason.SUSPENDED, "spec.replicas is 0, so nothing is served.")
    if server is None:
        return Finding("True", Reason.STARTING, "The server is being started.")
    if server.asleep:
        change = f" The last change waits: {waits}" if waits is not None else _unmade(plan, world)
        return Finding("False", Reason.SCALED_TO_ZERO, f"{SLEEPS}{change}")
    answering = _answering(resource, server, world)
    complete = server.ready >= _wanted(resource, server, world)
    if complete and _current(resource, server):
        missing = f"{_unmade(plan, world)}{_wakeful(resource, plan, world)}"
        return Finding("False", Reason.READY, f"{answering}, all of them as the spec says.{missing}")
    if trouble is not None:
        return Finding("False", _reason(trouble), f"{answering}. {trouble.message}")
    if not complete:
        return Finding("True", Reason.STARTING, f"{answering} so far; the others are being started.")
    if waits is not None:
        return Finding("False", Reason.PENDING, f"{answering}, as before the last change, which waits: {waits}")
    return Finding("True", Reason.STARTING, f"{answering}; they are being replaced one by one, as the spec now says.")


def _ready(resource: ModelServer, world: World, progressing: Finding, trouble: Failure | None) -> Finding:
    server = world.server
    if progressing.reason is Reason.SUSPENDED:
        return Finding("False", Reason.SUSPENDED, "Raise spec.replicas to serve.")
    rests = server is not None and (server.asleep or (server.ready == 0 and _slept(resource)))
    if rests and trouble is None and world.activator is not None and world.activator.ready:
        return Finding("True", Reason.SCALED_TO_ZERO, "Requests are taken, and held until a replica has started.")
    if server is not None and server.asleep and server.ready == 0:
        return Finding("False", Reason.NOT_READY, f"No replica is kept, and{_activator_trouble(world)}")
    if server is None or server.ready == 0:
        return Finding("False", Reason.NOT_READY, f"No replica answers yet. {progressing.message}")
    return Finding("True", Reason.READY, f"{_answering(resource, server, world)}.")


def _answering(resource: ModelServer, server: ServerFacts, world: World) -> str:
    return f"{server.ready} of {_wanted(resource, server, world)} replicas answer"


def _wanted(resource: ModelServer, server: ServerFacts, world: World) -> int:
    """Return how many replicas there should be: what autoscaling found, once it is at work, within its bounds."""
    scaling = resource.spec.autoscaling
    if scaling is None:
        return resource.spec.replicas
    found = server.wanted if server.wanted is not None else 1
    if Key("HorizontalPodAutoscaler", names.server(resource.metadata.name)) in world.unmade:
        return found
    return min(max(found, scaling.min_replicas), scaling.max_replicas)


def _slept(resource: ModelServer) -> bool:
    """Whether the last that was said is that requests are held."""
    before = find(resource.status, ConditionType.READY)
    return before is not None and before.status == "True" and before.reason == Reason.SCALED_TO_ZERO


def _wakeful(resource: ModelServer, plan: Plan, world: World) -> str:
    """Return why replicas are kept although the spec lets them go while nobody asks."""
    if resource.spec.scale_to_zero is None or not plan.children:
        return ""
    name = names.activator(resource.metadata.name)
    if not any(child["metadata"]["name"] == name for child in plan.children):
        return " spec.scaleToZero does nothing here: a process of this machine is kept."
    if world.activator is not None and world.activator.ready:
        return ""
    return f" They are kept also while nobody asks, because{_activator_trouble(world)}"


def _activator_trouble(world: World) -> str:
    """Return that no activator is ready, and what the platform says of it."""
    pods = world.activator.pods if world.activator is not None else ()
    found = next((failure for pod in pods if (failure := platform_failure(pod)) is not None), None)
    return f" no activator is ready: {found.message}" if found is not None else " no activator is ready yet."


def _current(resource: ModelServer, server: ServerFacts) -> bool:
    return server.observed_generation >= resource.metadata.generation


def _waits_for(plan: Plan) -> str | None:
    """Return why nothing is planned."""
    if plan.refused is not None:
        return plan.refused.message
    return plan.waiting_for[0].message if plan.waiting_for else None


def _unmade(plan: Plan, world: World) -> str:
    """Return what the spec asks for beside the server and the platform does not take; it is tried again."""
    planned = {Key(child["kind"], child["metadata"]["name"]) for child in plan.children}
    found = sorted((key, said.rstrip(".")) for key, said in world.unmade.items() if key in planned)
    return "".join(f" The {key} was not made: {said}." for key, said in found)


def _trouble(server: ServerFacts | None) -> Failure | None:
    """Return what is wrong with the first pod in trouble."""
    for pod in sorted(server.pods, key=lambda pod: (pod.index, pod.name)) if server is not None else ():
        if (found := platform_failure(pod)) is not None:
            return found
        if has_fallen(pod):
            return cause_of(pod).failure
    return None


def _reason(failure: Failure) -> Reason:
    return Reason(failure.reason) if failure.reason in set(Reason) else Reason.CRASHED
