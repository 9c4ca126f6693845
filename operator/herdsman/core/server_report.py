"""The status of a server: whether it answers, whether all of it does, and what is wrong where it does not."""

from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.status import ConditionType, Failure, Reason, Status
from herdsman.core.conditions import Finding, phase, settle
from herdsman.core.endings import cause_of, has_fallen
from herdsman.core.findings import accepted, dependencies, known, refusal
from herdsman.core.plan_types import Plan
from herdsman.core.serving import selector
from herdsman.core.troubles import platform_failure
from herdsman.core.world import ServerFacts, World


def server_status(resource: ModelServer, plan: Plan, world: World) -> Status:
    """Return the status of a ModelServer."""
    previous, generation = resource.status or Status(), resource.metadata.generation
    server = world.server
    trouble = _trouble(server)
    progressing = _progressing(resource, plan, server, trouble)
    findings = {
        ConditionType.ACCEPTED: accepted(plan),
        ConditionType.DEPENDENCIES_READY: dependencies(plan, alive=server is not None),
        ConditionType.PROGRESSING: progressing,
        ConditionType.READY: _ready(resource, server, progressing),
    }
    conditions = settle(previous.conditions, findings, generation, world.now)
    refused = refusal(plan.refused) if plan.refused is not None else None
    return Status(
        phase=phase(conditions),
        observed_generation=generation,
        conditions=conditions,
        failure=refused or (trouble if progressing.reason is not Reason.READY else None),
        estimate=known(plan.estimate),
        url=server.url if server is not None else None,
        replicas=server.replicas if server is not None else 0,
        ready_replicas=server.ready if server is not None else 0,
        selector=selector(resource),
    )


def _progressing(resource: ModelServer, plan: Plan, server: ServerFacts | None, trouble: Failure | None) -> Finding:
    wanted = resource.spec.replicas
    if server is None and plan.refused is not None:
        return Finding("False", Reason.PENDING, f"Nothing is started: {plan.refused.message}")
    if server is None and plan.waiting_for:
        return Finding("False", Reason.PENDING, f"Nothing is started before this: {plan.waiting_for[0].message}")
    if wanted == 0:
        return Finding("False", Reason.SUSPENDED, "spec.replicas is 0, so nothing is served.")
    if server is None:
        return Finding("True", Reason.STARTING, "The server is being started.")
    answering = f"{server.ready} of {wanted} replicas answer"
    if server.ready >= wanted and _current(resource, server):
        return Finding("False", Reason.READY, f"{answering}, all of them with the present configuration.")
    if trouble is not None:
        return Finding("False", _reason(trouble), f"{answering}. {trouble.message}")
    return Finding("True", Reason.STARTING, f"{answering} so far; the others are being started.")


def _ready(resource: ModelServer, server: ServerFacts | None, progressing: Finding) -> Finding:
    if progressing.reason is Reason.SUSPENDED:
        return Finding("False", Reason.SUSPENDED, "Raise spec.replicas to serve.")
    if server is None or server.ready == 0:
        return Finding("False", Reason.NOT_READY, f"No replica answers yet. {progressing.message}")
    if not _current(resource, server):
        return Finding(
            "False", Reason.NOT_READY, f"The replicas that answer have an older configuration. {progressing.message}"
        )
    return Finding("True", Reason.READY, f"{server.ready} of {resource.spec.replicas} replicas answer.")


def _current(resource: ModelServer, server: ServerFacts) -> bool:
    return server.observed_generation >= resource.metadata.generation


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
