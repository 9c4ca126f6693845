"""What was observed, as one frozen snapshot: the only thing besides the spec that decisions are made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Literal, NamedTuple

from herdsman.api.exit_codes import TerminationMessage
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.status import AdapterStatus, CheckpointStatus, Metric, Progress


class Key(NamedTuple):
    """A resource's identity within its namespace."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class WritePath(NamedTuple):
    """A directory on a claim that a resource writes."""

    claim: str
    path: str


@dataclass(frozen=True)
class PodFacts:
    """One pod, or one process of `herdsman run`."""

    name: str
    index: int = 0
    phase: Literal["Pending", "Running", "Succeeded", "Failed"] = "Pending"
    container: str = "trainer"
    exit_code: int | None = None
    reason: str | None = None
    """What the platform says: OOMKilled, Evicted, Unschedulable, ImagePullBackOff, Lost, ..."""
    message: str | None = None
    termination: TerminationMessage | None = None
    disrupted: bool = False
    """Ended from outside for reasons that are not its own: eviction, preemption, stop, suspend."""
    started: datetime | None = None
    ended: datetime | None = None


@dataclass(frozen=True)
class JobFacts:
    """One attempt's Job."""

    name: str
    attempt: int
    state: Literal["Pending", "Running", "Suspended", "Complete", "Failed"] = "Pending"
    """Complete and Failed end the attempt; a suspended one goes on later."""
    reason: str | None = None
    """What the platform says of the Job itself: DeadlineExceeded, QuotaExceeded, ..."""
    message: str | None = None
    pods: tuple[PodFacts, ...] = ()
    started: datetime | None = None
    ended: datetime | None = None
    progress: Progress | None = None
    checkpoint: CheckpointStatus | None = None
    report: tuple[Metric, ...] = ()
    """The figures of the finished artifact's manifest."""
    preflight: bool = False
    """Whether it checks the inputs on a CPU and makes no artifact."""


@dataclass(frozen=True)
class ServerFacts:
    """The Deployment of a ModelServer."""

    replicas: int = 0
    ready: int = 0
    url: str | None = None
    observed_generation: int = 0
    """The generation of the ModelServer that all replicas are of; 0 while some are not."""
    pods: tuple[PodFacts, ...] = ()
    wanted: int | None = None
    """Replicas that are asked for: spec.replicas, or what autoscaling found."""
    config: str | None = None
    """The ConfigMap that all replicas have; None while some have another one."""
    configs: tuple[str, ...] = ()
    """All ConfigMaps of the server that exist."""
    asleep: bool = False
    """Whether it has no replicas because nobody asked for a while."""
    adapters: tuple[tuple[AdapterStatus, ...], ...] = ()
    """What each replica that was heard says of its hot adapters."""


@dataclass(frozen=True)
class Demand:
    """What the activators of a ModelServer say together."""

    requests: int
    """Requests that are held or answered."""
    idle_seconds: float
    """Seconds since the last one, or since the youngest activator started."""


@dataclass(frozen=True)
class ActivatorFacts:
    """The Deployment of a ModelServer's activators."""

    ready: int = 0
    demand: Demand | None = None
    """None while not every activator has answered."""
    pods: tuple[PodFacts, ...] = ()


@dataclass(frozen=True)
class VolumeFacts:
    """A claim that exists."""

    claim: str
    access_modes: tuple[str, ...] = ("ReadWriteOnce",)
    bound: bool = True
    message: str | None = None
    free_bytes: int | None = None


def _empty() -> Mapping[str, JobFacts]:
    return MappingProxyType({})


@dataclass(frozen=True)
class World:
    """Everything a decision about one resource may depend on, besides its own spec and status."""

    now: datetime
    jobs: Mapping[str, JobFacts] = field(default_factory=_empty)
    """The resource's own Jobs, by name."""
    server: ServerFacts | None = None
    """The resource's own Deployment."""
    activator: ActivatorFacts | None = None
    """The resource's own activators."""
    resources: Mapping[Key, AnyResource] = field(default_factory=lambda: MappingProxyType({}))
    """The resources it refers to, directly or through others; absent ones do not exist."""
    volumes: Mapping[str, VolumeFacts] = field(default_factory=lambda: MappingProxyType({}))
    """The claims it reads or writes that exist, by name."""
    writers: Mapping[WritePath, Key] = field(default_factory=lambda: MappingProxyType({}))
    """What all other resources of the namespace write; the elder one wins, so younger ones are left out."""
    foreign: frozenset[Key] = frozenset()
    """Objects with a child's name that belong to somebody else."""
    unmade: Mapping[Key, str] = field(default_factory=lambda: MappingProxyType({}))
    """Optional children that the platform does not take, and what it says."""
