"""What the core needs to know of a kind; each kind fills it in its own module."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from herdsman.api.job_config import RunConfig
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.core.environment import Entry, no_hub
from herdsman.core.estimate import Sketch
from herdsman.core.inputs import Inputs, Need
from herdsman.core.jobs import Frame
from herdsman.core.plan_types import Problem
from herdsman.core.site import Site
from herdsman.core.world import World

R = TypeVar("R", bound=AnyResource)


def no_problem(_resource: AnyResource) -> Problem | None:
    """Return None: the API model already refuses all that can be wrong."""
    return None


def no_contract(_resource: AnyResource, _inputs: Inputs, _world: World) -> Problem | None:
    """Return None: the inputs need not fit each other."""
    return None


def asks_no_hub(_resource: AnyResource, site: Site) -> Sequence[Entry]:
    """Return the environment of a container that takes everything from volumes."""
    return no_hub(site)


def no_keys(_resource: AnyResource, _inputs: Inputs) -> Sequence[Entry]:
    """Return nothing: no input has a key of its own."""
    return ()


@dataclass(frozen=True)
class KindRules(Generic[R]):
    """One kind: what it reads, what can be wrong with it, and what it needs."""

    needs: Callable[[R], Sequence[Need]]
    """Its inputs."""
    estimate: Callable[[R, World], Sketch]
    """What it will need, as far as it is known before anything exists."""
    problem: Callable[[R], Problem | None] = no_problem
    """Why the spec alone can never run."""
    contract: Callable[[R, Inputs, World], Problem | None] = no_contract
    """Why the inputs, once they are all there, do not fit together."""


@dataclass(frozen=True)
class RunKind(KindRules[R]):
    """A kind whose work is a Job."""

    config: Callable[[R, Frame, Inputs, Site], RunConfig] | None = None
    """The configuration of one attempt."""
    environment: Callable[[R, Site], Sequence[Entry]] = asks_no_hub
    """The environment of its containers."""
    keys: Callable[[R, Inputs], Sequence[Entry]] = no_keys
    """The keys of its inputs, as further variables."""
