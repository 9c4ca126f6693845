"""Gates: what spec.after names has to have gone well before a run begins or a server serves something new."""

from collections.abc import Iterator

from herdsman.api.v1alpha1.evaluation import Evaluation
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.status import ConditionType, Reason
from herdsman.core import conditions, references
from herdsman.core.inputs import Inputs
from herdsman.core.plan_types import Problem
from herdsman.core.world import Key, World

FIELD = "spec.after"


def closed(resource: AnyResource, world: World) -> list[Problem]:
    """Return the gates that are not open, and why: missing, not finished, or failed."""
    found = (_closed(field, key, world) for field, key in _gates(resource))
    return [problem for problem in found if problem is not None]


def outdated(resource: AnyResource, inputs: Inputs, world: World) -> Problem | None:
    """Return that a gate judged an input of the resource as it was before it was made anew, or None.

    An Evaluation may be about other resources than those that are used here (a base with adapters, and then what was
    merged of them); only where it names the very same one can the digests be compared.
    """
    for field, key in _gates(resource):
        gate = world.resources.get(key)
        made = gate.status.artifact if gate is not None and gate.status is not None else None
        if not isinstance(gate, Evaluation) or made is None or not made.parents:
            continue
        judged = {str(named) for _, named in references.direct(gate)}
        for found in inputs.found.values():
            if found.artifact is None or found.label not in judged or found.artifact.digest in made.parents:
                continue
            return Problem(
                Reason.ARTIFACT_MISMATCH,
                f"{field}: {key} evaluated {found.label} before it was made anew: it is "
                f"{found.artifact.digest[:12]}… now, which the Evaluation has not seen.",
                hint=f"Delete {key} and apply it again, so that it evaluates what is used here.",
                field=field,
            )
    return None


def _gates(resource: AnyResource) -> Iterator[tuple[str, Key]]:
    return ((field, key) for field, key in references.direct(resource) if field.startswith(f"{FIELD}["))


def _closed(field: str, key: Key, world: World) -> Problem | None:
    gate = world.resources.get(key)
    if gate is None:
        return Problem(
            Reason.REFERENCE_NOT_FOUND,
            f"{field}: there is no {key} in the namespace.",
            hint=f"Apply the {key.kind}, or correct the name; this goes on by itself then.",
            field=field,
        )
    if conditions.holds(gate.status, ConditionType.COMPLETE):
        return None
    failure = gate.status.failure if gate.status is not None else None
    if conditions.holds(gate.status, ConditionType.FAILED):
        judged = failure is not None and failure.reason == Reason.THRESHOLD_NOT_MET
        how = "came out below its thresholds" if judged else "has failed"
        return Problem(
            Reason.REFERENCE_FAILED,
            f"{field}: {key} {how}{f': {failure.message}' if failure is not None else '.'}",
            hint=f"Make a better model, evaluate it under a new name and put that into {FIELD}; to go on in spite of "
            f"it, take {key} out of {FIELD}.",
            field=field,
        )
    phase = gate.status.phase if gate.status is not None else "Pending"
    message = f"{field}: waits for {key}, which is not finished yet (it is {phase})."
    return Problem(Reason.REFERENCE_NOT_READY, message, field=field)
