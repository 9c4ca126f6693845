"""Where and with what a run works: nodes, GPUs, volumes, and the policy of its attempts."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from herdsman.api.meta import ApiModel
from herdsman.api.v1alpha1.schema import MUTABLE, cel
from herdsman.api.v1alpha1.sources import ClaimName, GateRef, RelativePath

QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"
Quantity = Annotated[str, Field(pattern=QUANTITY, max_length=20)]
QUALIFIED_NAME = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
"""The key of a label or a taint."""
IMAGE = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
QualifiedName = Annotated[str, Field(pattern=QUALIFIED_NAME, max_length=253)]


class Resources(ApiModel):
    """What one pod asks for beside its GPUs."""

    cpu: Quantity | None = None
    """CPU cores, as a quantity such as "4" or "500m"."""
    memory: Quantity | None = None
    """Memory, as a quantity such as 64Gi; request and limit alike."""
    ephemeral_storage: Quantity | None = None
    """Scratch space on the node."""


_TOLERATION_RULES = (
    ("has(self.key) || self.operator == 'Exists'", "without a key the operator must be Exists"),
    ("!has(self.value) || self.operator == 'Equal'", "a value goes with the operator Equal only"),
    (
        "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
        "tolerationSeconds goes with the effect NoExecute only",
    ),
)


class Toleration(ApiModel):
    """A taint the pods tolerate."""

    model_config = ConfigDict(json_schema_extra=cel(*_TOLERATION_RULES))

    key: QualifiedName | None = None
    """The taint's key; none with operator Exists tolerates all."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How key and value are compared."""
    value: LabelValue | None = None
    """The taint's value, with Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The effect; none tolerates all."""
    toleration_seconds: int | None = Field(default=None, ge=0, le=86400)
    """How long a NoExecute taint is tolerated."""

    @model_validator(mode="after")
    def _rules(self) -> "Toleration":
        if self.key is None and self.operator != "Exists":
            raise ValueError(_TOLERATION_RULES[0][1])
        if self.value is not None and self.operator != "Equal":
            raise ValueError(_TOLERATION_RULES[1][1])
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError(_TOLERATION_RULES[2][1])
        return self


class Compute(ApiModel):
    """Nodes, devices and scheduling of the pods."""

    nodes: int = Field(default=1, ge=1, le=256)
    """Pods that train together, one a node."""
    gpus_per_node: int = Field(default=0, ge=0, le=16)
    """GPUs of each pod; 0 trains on the CPU."""
    processes_per_node: int | None = Field(default=None, ge=1, le=64)
    """Training processes of each pod; the number of GPUs, or 1 on the CPU, unless set."""
    resources: Resources = Field(default_factory=Resources)
    """CPU and memory of each pod."""
    node_selector: dict[QualifiedName, LabelValue] = Field(default_factory=dict, max_length=20)
    """Labels the nodes must have."""
    tolerations: list[Toleration] = Field(default_factory=list, max_length=20)
    """Taints the pods tolerate."""
    priority_class_name: str | None = Field(default=None, pattern=DNS_SUBDOMAIN, max_length=253)
    """The PriorityClass of the pods."""
    queue_name: str | None = Field(default=None, pattern=DNS_SUBDOMAIN, max_length=63)
    """The Kueue LocalQueue; it becomes a label of the Job."""
    image: str | None = Field(default=None, pattern=IMAGE, max_length=400)
    """The trainer or server image, instead of the operator's default."""

    @property
    def processes(self) -> int:
        """Training processes of one pod."""
        return self.processes_per_node or max(1, self.gpus_per_node)

    @property
    def world_size(self) -> int:
        """Training processes in all."""
        return self.nodes * self.processes


class Workspace(ApiModel):
    """The volume and the directory the run writes to."""

    claim: ClaimName | None = None
    """An existing PersistentVolumeClaim; none makes one for this resource."""
    path: RelativePath | None = None
    """The directory on it; the kind and the name of the resource unless set. Two resources never write the same."""
    size: Quantity = "50Gi"
    """The size of the claim that is made."""
    storage_class_name: str | None = Field(default=None, pattern=DNS_SUBDOMAIN, max_length=253)
    """Its StorageClass; the cluster's default unless set."""
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany"] | None = None
    """ReadWriteOnce on one node, ReadWriteMany on several, unless set."""
    retain: bool = True
    """Whether the claim stays when the resource is deleted."""


class RunPolicy(ApiModel):
    """When a run may work, how long, how often, and how long it is remembered."""

    compute: Compute = Field(default_factory=Compute)
    """Nodes, devices and scheduling."""
    workspace: Workspace = Field(default_factory=Workspace)
    """Where it writes."""
    after: list[GateRef] = Field(default_factory=list, max_length=8, json_schema_extra=MUTABLE)
    """What has to have gone well before the run begins, beside its inputs: Evaluations whose thresholds are met. A run
    that has begun goes on."""
    suspend: bool = Field(default=False, json_schema_extra=MUTABLE)
    """Stops the run after saving; false lets it go on from there."""
    active_deadline_seconds: int | None = Field(default=None, ge=1, le=31536000)
    """Seconds the run may work in all before it fails."""
    max_restarts: int = Field(default=3, ge=0, le=100, json_schema_extra=MUTABLE)
    """Restarts after faults; evictions and interruptions do not count."""
    stall_seconds: int = Field(default=1800, ge=60, le=86400, json_schema_extra=MUTABLE)
    """Seconds without any progress, even a micro-batch or a piece of a file, after which the attempt is ended as
    Stalled and made again; a change holds from the next attempt on."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=31536000, json_schema_extra=MUTABLE)
    """Seconds after the end when the pods and their logs are removed."""
