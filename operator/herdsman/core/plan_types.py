"""What planning returns: the objects that should exist, or why there are none yet."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from herdsman.api.v1alpha1.status import Estimate, Reason
from herdsman.core.world import Key

Manifest = Mapping[str, Any]
"""A Kubernetes object as a plain dict: apiVersion, kind, metadata, spec or data."""


@dataclass(frozen=True)
class Problem:
    """Why something is refused or waited for: one reason, one sentence, one remedy."""

    reason: Reason
    message: str
    """What is wrong, starting with the field where it is about one."""
    hint: str | None = None
    field: str | None = None
    """The field it is about, such as spec.model."""


@dataclass(frozen=True)
class HotAdapterPlan:
    """An adapter that a server is to load while it runs."""

    name: str
    problem: Problem | None = None
    """Why it cannot be loaded, or not yet."""


@dataclass(frozen=True)
class Plan:
    """What should exist for one resource, now."""

    children: tuple[Manifest, ...] = ()
    """Objects with deterministic names; applying them twice changes nothing."""
    waiting_for: tuple[Problem, ...] = ()
    """What has to happen first; empty when the run may start."""
    refused: Problem | None = None
    """Why it cannot run as things are: only a change of a manifest helps, waiting does not. One `herdsman run` ends
    with it; the resource itself is not Failed for good (docs/decisions/0004)."""
    attempt: int | None = None
    """The attempt the children belong to."""
    preflight: bool = False
    """Whether the living or the next attempt is a preflight."""
    estimate: Estimate | None = None
    """What the run will need."""
    not_before: datetime | None = None
    """When the next attempt may start, after a fault."""
    expired: tuple[str, ...] = ()
    """Names of Jobs of a finished run that ttlSecondsAfterFinished has run out for: to be deleted with their pods."""
    unwanted: tuple[Key, ...] = ()
    """Optional children that the spec does not ask for, or no longer: deleted where they exist and are its own."""
    wake: str | None = None
    """A Deployment that sleeps and is asked for, while nothing else can be planned: it gets its replicas back."""
    adapters: tuple[HotAdapterPlan, ...] = ()
    """The hot adapters of a server."""
    requeue_after: float | None = None
    """Seconds after which to plan again even if nothing is heard."""
