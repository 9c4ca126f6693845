"""Planning ahead: what would happen to a resource, and what it would be taken for once its run had succeeded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from herdsman.api.meta import Condition
from herdsman.api.v1alpha1.lora_merge import LoRAMerge
from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.status import Artifact, ConditionType, Phase, Reason, Status
from herdsman.core import names
from herdsman.core.conditions import holds
from herdsman.core.inputs import made_by
from herdsman.core.plan_types import Manifest, Plan
from herdsman.core.references import direct
from herdsman.core.volumes import writes
from herdsman.core.world import Key

ASSUMED_DIGEST = "0" * 64
"""The digest of an artifact that does not exist yet."""
FAILED_BEFORE = "It has failed before, which never changes; delete it, or give it a new name."


@dataclass(frozen=True)
class Preview:
    """What would happen to one resource."""

    key: Key
    action: str
    """created, updated, unchanged or refused."""
    plan: Plan
    done: bool
    """Whether it is finished already."""
    after: tuple[Key, ...]
    """The resources it waits for, which are not finished yet."""
    problems: tuple[str, ...]
    """Why it would not run anywhere."""
    wants: tuple[str, ...]
    """What it needs and this machine, or this cluster, does not have: volumes, GPUs."""
    blocked: bool = False
    """Whether something it needs has a problem."""

    @property
    def children(self) -> tuple[Manifest, ...]:
        """The objects that would be made."""
        return self.plan.children


def make_preview(
    key: Key, action: str, resource: AnyResource, planned: Plan, refusals: Sequence[str], wants: Sequence[str]
) -> Preview:
    """Return the preview of a resource from its plan; waiting for what is not finished yet is no problem."""
    problems = list(refusals)
    waiting = [problem for problem in planned.waiting_for if problem.reason is not Reason.REFERENCE_NOT_READY]
    for problem in (*([planned.refused] if planned.refused else []), *waiting):
        problems.append(f"{problem.message} {problem.hint or ''}".rstrip())
    if holds(resource.status, ConditionType.FAILED):
        problems.append(FAILED_BEFORE)
    done = holds(resource.status, ConditionType.COMPLETE)
    blocked = len(waiting) < len(planned.waiting_for)
    return Preview(key, action, planned, done, (), tuple(problems), () if done else tuple(wants), blocked)


def assumed_success(resource: AnyResource, resources: Mapping[Key, AnyResource], now: datetime) -> Status | None:
    """Return the status the resource would have after success, as far as its spec tells."""
    if isinstance(resource, ModelServer):
        return _answering(resource, now)
    kind, target = made_by(resource), writes(resource)
    if kind is None or target is None:
        return None
    parents = _parents(resource, resources)
    path = "artifact" if target.path == "." else f"{target.path}/artifact"
    artifact = Artifact(
        kind=kind.value,
        claim=target.claim,
        path=path,
        digest=ASSUMED_DIGEST,
        bytes=0,
        parents=parents,
        formats=resource.spec.outputs.formats if isinstance(resource, LoRAMerge) else [],
    )
    complete = _condition(ConditionType.COMPLETE, Reason.SUCCEEDED, resource.metadata.generation, now)
    return Status(phase=Phase.SUCCEEDED, conditions=[complete], artifact=artifact)


def unfinished_inputs(key: Key, resources: Mapping[Key, AnyResource], previews: Sequence[Preview]) -> tuple[Key, ...]:
    """Return the previewed resources that this one names and that are not done yet, in the order of its spec."""
    unfinished = {each.key for each in previews if not each.done}
    return tuple(dict.fromkeys(other for _, other in direct(resources[key]) if other in unfinished))


def _answering(server: ModelServer, now: datetime) -> Status | None:
    """Return the status of a server once it answers; None for one that is switched off."""
    if server.spec.replicas == 0:
        return None
    ready = _condition(ConditionType.READY, Reason.READY, server.metadata.generation, now)
    url = f"http://{names.server(server.metadata.name)}:{server.spec.port}/v1"
    return Status(phase=Phase.READY, conditions=[ready], url=url)


def _parents(resource: AnyResource, resources: Mapping[Key, AnyResource]) -> list[str]:
    """Return the parents of the adapter it makes: one that goes on from another adapter takes that one's place."""
    adapter = getattr(resource.spec, "adapter", None)
    for field, source in direct(resource) if adapter is not None else []:
        status = resources[source].status if field.startswith("spec.adapter.") and source in resources else None
        if status is not None and status.artifact is not None:
            return list(status.artifact.parents)
    return []


def _condition(kind: ConditionType, reason: Reason, generation: int, now: datetime) -> Condition:
    return Condition(
        type=kind.value, status="True", reason=reason.value, observed_generation=generation, last_transition_time=now
    )
