"""Status: what is reported of a resource."""

from collections.abc import Sequence
from datetime import datetime

from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.status import Status
from herdsman.core.plan_types import Plan
from herdsman.core.world import World


def status(resource: AnyResource, plan: Plan, world: World) -> Status:
    """Return what is to be reported; fed back, it changes nothing."""
    raise NotImplementedError


def invalid_status(previous: Status | None, generation: int, problems: Sequence[str], now: datetime) -> Status:
    """Return the status of a stored resource that does not fit its model; a terminal state stays."""
    raise NotImplementedError


def is_final(status: Status) -> bool:
    """Whether the state never changes again: Complete or Failed."""
    raise NotImplementedError


def is_refused(status: Status) -> bool:
    """Whether it cannot run as things are, and only a change of a manifest helps; final for one `herdsman run`."""
    raise NotImplementedError
