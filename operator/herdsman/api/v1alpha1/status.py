"""Status: the same on all kinds."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from herdsman.api.meta import MAX_COUNT, ApiModel, Condition

SHA256 = r"^[0-9a-f]{64}$"
Digest = Annotated[str, Field(pattern=SHA256, max_length=64)]


class Phase(StrEnum):
    """The one-word summary of a resource; derived from the conditions, always set."""

    PENDING = "Pending"
    WAITING = "Waiting"
    QUEUED = "Queued"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    PROGRESSING = "Progressing"
    READY = "Ready"
    DEGRADED = "Degraded"
    IDLE = "Idle"


class ConditionType(StrEnum):
    """The conditions; all that belong to a kind are present from the first write."""

    ACCEPTED = "Accepted"
    DEPENDENCIES_READY = "DependenciesReady"
    PROGRESSING = "Progressing"
    COMPLETE = "Complete"
    FAILED = "Failed"
    SUSPENDED = "Suspended"
    READY = "Ready"


class Reason(StrEnum):
    """Why a condition is what it is, or why a run failed."""

    ACCEPTED = "Accepted"
    """The spec is valid and nothing in it contradicts anything else."""
    INVALID_SPEC = "InvalidSpec"
    """A field is wrong in a way only visible beside the rest."""
    NAME_CONFLICT = "NameConflict"
    """An object that Herdsman would make exists and belongs to somebody else."""
    PATH_CONFLICT = "PathConflict"
    """Another resource writes the same path of the same volume."""
    CYCLE = "Cycle"
    """The references lead back to the resource itself."""
    DEPENDENCIES_READY = "DependenciesReady"
    """Everything that is referenced is ready."""
    REFERENCE_NOT_FOUND = "ReferenceNotFound"
    """A referenced resource does not exist (yet)."""
    REFERENCE_NOT_READY = "ReferenceNotReady"
    """A referenced resource exists and is not finished."""
    REFERENCE_FAILED = "ReferenceFailed"
    """A referenced resource has failed."""
    VOLUME_NOT_FOUND = "VolumeNotFound"
    """A volume that is read does not exist."""
    ARTIFACT_MISMATCH = "ArtifactMismatch"
    """Two referenced artifacts do not fit together."""
    PENDING = "Pending"
    """Nothing has been decided yet."""
    QUEUED = "Queued"
    """Waits for its turn or its resources."""
    STARTING = "Starting"
    """Made, and not reporting yet."""
    RUNNING = "Running"
    """Works."""
    RESTARTING = "Restarting"
    """The last attempt ended and the next one is to come."""
    SUSPENDED = "Suspended"
    """Stopped because spec.suspend says so."""
    NOT_SUSPENDED = "NotSuspended"
    """May run."""
    SUCCEEDED = "Succeeded"
    """Finished, and the artifact is complete."""
    NOT_FAILED = "NotFailed"
    """Nothing has failed for good."""
    BAD_INPUT = "BadInput"
    """A file or the spec is wrong; the message names it."""
    CHECKSUM_MISMATCH = "ChecksumMismatch"
    """A file's SHA-256 is not the expected one."""
    CHECKPOINT_LOST = "CheckpointLost"
    """Checkpoints existed and none of them verifies."""
    DISK_FULL = "DiskFull"
    """The volume has no space left."""
    THRESHOLD_NOT_MET = "ThresholdNotMet"
    """An Evaluation came out worse than its thresholds ask."""
    DIVERGED = "Diverged"
    """The loss is not finite, or ran away at the start."""
    INTERRUPTED = "Interrupted"
    """Stopped from outside after saving."""
    TEMPORARY = "Temporary"
    """A fault that may pass."""
    OUT_OF_MEMORY = "OutOfMemory"
    """The process was killed, most likely for want of memory."""
    KILLED = "Killed"
    """The process was killed from outside."""
    STALLED = "Stalled"
    """Nothing moved for spec.stallSeconds: a collective, a volume or a device that does not answer."""
    CRASHED = "Crashed"
    """The process ended in a way Herdsman does not know."""
    LOST = "Lost"
    """The machine or the supervisor went away while it ran."""
    MAX_RESTARTS_EXCEEDED = "MaxRestartsExceeded"
    """Restarted as often as spec.maxRestarts allows."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    """Ran longer than spec.activeDeadlineSeconds."""
    UNSCHEDULABLE = "Unschedulable"
    """No node fits the pod."""
    IMAGE_UNAVAILABLE = "ImageUnavailable"
    """The container image cannot be pulled."""
    QUOTA_EXCEEDED = "QuotaExceeded"
    """A quota of the namespace forbids the pods."""
    VOLUME_UNAVAILABLE = "VolumeUnavailable"
    """A volume cannot be bound or mounted."""
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason
    """A Secret that a pod needs does not exist, or lacks the key."""
    ENDPOINT_UNAVAILABLE = "EndpointUnavailable"
    """The API that is asked for records does not answer, or refuses for the time being."""
    ENDPOINT_EXHAUSTED = "EndpointExhausted"
    """The account at the API that is asked for records has no quota left."""
    READY = "Ready"
    """Serves."""
    NOT_READY = "NotReady"
    """Does not serve yet."""
    SCALED_TO_ZERO = "ScaledToZero"
    """No replica is kept while nobody asks; requests are held and have one started."""


class ArtifactKind(StrEnum):
    """What an artifact is."""

    MODEL = "model"
    TOKENIZER = "tokenizer"
    ADAPTER = "adapter"
    DATASET = "dataset"
    REPORT = "report"


class Artifact(ApiModel):
    """What a finished resource hands on, checked by whoever takes it before any GPU is taken."""

    kind: Literal["model", "tokenizer", "adapter", "dataset", "report"]
    """model, tokenizer, adapter, dataset or report."""
    claim: str = Field(default="", max_length=253)
    """The persistent volume claim it lies on."""
    path: str = Field(default="", max_length=400)
    """The directory on that volume."""
    digest: str = Field(pattern=SHA256, max_length=64)
    """SHA-256 over the sorted lines "name size sha256" of its files."""
    bytes: int = Field(ge=0, le=MAX_COUNT)
    """The size of its files together."""
    vocab_size: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Pieces of the tokenizer, or rows of the embedding; none for an adapter without embeddings."""
    tokenizer_digest: str | None = Field(default=None, pattern=SHA256, max_length=64)
    """SHA-256 of tokenizer.model, or of the canonical tokenizer.json where there is no tokenizer.model."""
    base_digest: str | None = Field(default=None, pattern=SHA256, max_length=64)
    """Adapters: the digest of the model it was trained on."""
    parents: list[Digest] = Field(default_factory=list, max_length=16)
    """Adapters: digests of the adapters that were applied to the base before it, in order. Reports: digests of the
    models and adapters that were evaluated; none where there are more than 16."""
    dtype: str | None = Field(default=None, max_length=16)
    """The floating-point type of the weights: float32, bfloat16 or float16."""
    prompt_template: str | None = Field(default=None, max_length=32)
    """The prompt template the model was tuned with."""
    formats: list[Literal["huggingface", "pth", "gguf"]] = Field(default_factory=list, max_length=3)
    """Models: the forms it is stored in; none listed means huggingface alone."""
    report: str | None = Field(default=None, max_length=64)
    """The file in that directory that tells how it was made, with curves and samples, for a browser."""


class Metric(ApiModel):
    """A named figure."""

    name: str = Field(max_length=64)
    """For example loss, learning_rate, heldout_loss_per_char."""
    value: str = Field(max_length=32)
    """The figure in decimal notation; a string, because the API knows no floats."""


class DataFigures(ApiModel):
    """What a training's data is; the file data-report.json in the workspace and in the artifact says it by dataset."""

    documents: int = Field(ge=0, le=MAX_COUNT)
    """Documents, or records, that are trained or evaluated on."""
    held_out: int = Field(ge=0, le=MAX_COUNT)
    """How many of them are kept for evaluation."""
    tokens: int = Field(ge=0, le=MAX_COUNT)
    """Their tokens, with BOS and EOS, and of records with what the template adds."""
    characters: int = Field(ge=0, le=MAX_COUNT)
    """Their characters; of records those of prompts and answers."""
    tokens_per_character: str = Field(max_length=32)
    """The figure in decimal notation."""
    truncated: int = Field(ge=0, le=MAX_COUNT)
    """Records whose answer was cut."""
    dropped: int = Field(ge=0, le=MAX_COUNT)
    """Documents or records that are left out: empty, too long, or duplicates where these are dropped."""
    duplicates: int = Field(ge=0, le=MAX_COUNT)
    """Documents or records that were met before, dropped or not."""


class Progress(ApiModel):
    """How far a run is, within ten seconds of the truth."""

    percent: int = Field(default=0, ge=0, le=100)
    """Whole percent done."""
    step: int = Field(default=0, ge=0, le=MAX_COUNT)
    """Optimizer steps done."""
    total_steps: int | None = Field(default=None, ge=0, le=MAX_COUNT)
    """Optimizer steps in all."""
    estimated_remaining_seconds: int | None = Field(default=None, ge=0, le=MAX_COUNT)
    """Seconds to go at the present speed."""
    remaining: str | None = Field(default=None, max_length=16)
    """The same for people, while the run works: 1h15m."""
    tokens_per_second: int | None = Field(default=None, ge=0, le=MAX_COUNT)
    """Tokens trained per second over all ranks."""
    activity: str | None = Field(default=None, max_length=128)
    """What is being done just now, in a few words."""
    metrics: list[Metric] = Field(default_factory=list, max_length=20)
    """Figures such as loss."""
    loss_curve: str | None = Field(default=None, max_length=32)
    """The loss from the first step until now, as blocks between its least and its greatest value: █▅▃▂▂▁."""
    data: DataFigures | None = None
    """What the data is, once it is tokenised."""
    last_updated_time: datetime | None = None
    """When the trainer last wrote this."""


class CheckpointStatus(ApiModel):
    """The checkpoints on the volume."""

    latest: str | None = Field(default=None, max_length=253)
    """Directory of the newest verified checkpoint, relative to the workspace."""
    step: int = Field(default=0, ge=0, le=MAX_COUNT)
    """Its optimizer step."""
    verified: bool = False
    """Whether its digests were checked."""
    count: int = Field(default=0, ge=0, le=MAX_COUNT)
    """How many are kept."""
    best_step: int | None = Field(default=None, ge=0, le=MAX_COUNT)
    """The step of the kept one with the least held-out loss, where recipe.checkpoints asks for it."""
    best_heldout_loss: str | None = Field(default=None, max_length=32)
    """Its held-out loss, in nats a token; a string, because the API knows no floats."""


class Attempt(ApiModel):
    """One try of the run."""

    number: int = Field(ge=1, le=MAX_COUNT)
    """Counted from 1."""
    started: datetime | None = None
    """When its first process started."""
    ended: datetime | None = None
    """When its last process ended."""
    exit_code: int | None = Field(default=None, ge=-255, le=255)
    """The exit code that decided it."""
    reason: str | None = Field(default=None, max_length=64)
    """How it ended."""
    counted: bool = True
    """Whether it counts against maxRestarts."""
    preflight: bool = False
    """Whether it only checks the inputs and makes the data ready, on a CPU, before any GPU is taken."""
    resumed_from_step: int | None = Field(default=None, ge=0, le=MAX_COUNT)
    """The checkpoint it continued from."""


class Failure(ApiModel):
    """The root cause of a failure; cleared on recovery."""

    reason: str = Field(max_length=64)
    """One word of the reasons."""
    message: str = Field(max_length=2048)
    """What is wrong and where."""
    hint: str | None = Field(default=None, max_length=1024)
    """What to do."""
    pod: str | None = Field(default=None, max_length=253)
    """The pod it happened in."""
    container: str | None = Field(default=None, max_length=63)
    """The container it happened in."""
    exit_code: int | None = Field(default=None, ge=-255, le=255)
    """Its exit code."""


class Estimate(ApiModel):
    """What the run will need; written before it starts."""

    gpu_memory_gib: float | None = Field(default=None, alias="gpuMemoryGiB", ge=0)
    """Peak memory of one GPU, in GiB."""
    disk_gib: float | None = Field(default=None, alias="diskGiB", ge=0)
    """Space on the workspace's volume, in GiB."""
    hours: float | None = Field(default=None, ge=0)
    """Wall-clock hours, where the GPUs' speed is known."""


class AdapterStatus(ApiModel):
    """One adapter that requests choose."""

    name: str = Field(max_length=96)
    """What clients call it."""
    loaded: bool = False
    """Whether all replicas that answer have it."""
    message: str | None = Field(default=None, max_length=1024)
    """Why not: what it waits for, or what a replica says against it and what to do."""


class Status(ApiModel):
    """What Herdsman knows about a resource."""

    phase: Phase = Phase.PENDING
    """The one-word summary."""
    observed_generation: int = Field(default=0, ge=0, le=MAX_COUNT)
    """The generation of the spec this status was decided from."""
    conditions: list[Condition] = Field(default_factory=list, max_length=16)
    """Accepted, DependenciesReady, Progressing, Complete, Failed, Suspended; ModelServer: Ready."""
    progress: Progress | None = None
    """How far the run is."""
    checkpoint: CheckpointStatus | None = None
    """The newest checkpoint."""
    attempts: list[Attempt] = Field(default_factory=list, max_length=100)
    """The tries so far, oldest first."""
    restarts: int = Field(default=0, ge=0, le=MAX_COUNT)
    """Attempts that counted against maxRestarts."""
    failure: Failure | None = None
    """Why it failed or cannot go on."""
    estimate: Estimate | None = None
    """What the run will need."""
    artifact: Artifact | None = None
    """The result."""
    report: list[Metric] = Field(default_factory=list, max_length=40)
    """Figures of the finished run, such as tokens per character before and after."""
    url: str | None = Field(default=None, max_length=253)
    """ModelServer: where the OpenAI API answers."""
    replicas: int | None = Field(default=None, ge=0, le=MAX_COUNT)
    """ModelServer: replicas that exist."""
    ready_replicas: int | None = Field(default=None, ge=0, le=MAX_COUNT)
    """ModelServer: replicas that answer."""
    selector: str | None = Field(default=None, max_length=253)
    """ModelServer: the label selector of its pods, for the scale subresource."""
    adapters: list[AdapterStatus] = Field(default_factory=list, max_length=32)
    """ModelServer: the adapters of spec.hotAdapters."""
