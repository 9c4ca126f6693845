"""What a trainer or server container reads: the kind's recipe and the resolved paths, as one JSON file."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from herdsman.api.meta import ApiModel
from herdsman.api.v1alpha1.evaluation import Threshold
from herdsman.api.v1alpha1.evaluation_tasks import Task
from herdsman.api.v1alpha1.generation import Generation
from herdsman.api.v1alpha1.instruction_set import Cleaning, Columns, Conversations, Language, RecordFormat
from herdsman.api.v1alpha1.lora_merge import GgufType, MergeOutputs, huggingface_alone
from herdsman.api.v1alpha1.model_import import Initialise
from herdsman.api.v1alpha1.model_server import Dialect, EngineName, Quantisation, ServerLimits
from herdsman.api.v1alpha1.recipes import DeepSpeed, PretrainRecipe, SFTRecipe, Stage, Template
from herdsman.api.v1alpha1.remote_sources import HttpSource, HubSource, S3Source
from herdsman.api.v1alpha1.report_to import ReportTo
from herdsman.api.v1alpha1.schema import OneOf
from herdsman.api.v1alpha1.status import AdapterStatus, Artifact, Metric


class Input(ApiModel):
    """A directory or file that is read."""

    root: str
    """The mount point of its volume; nothing outside it is followed."""
    path: str
    """The absolute path."""
    field: str
    """The field of the spec it comes from, for messages: spec.dataset.volume."""
    artifact: Artifact | None = None
    """The contract it was published with; none for plain files on a volume."""
    part: str | None = None
    """The directory in the artifact that is read; all of it where there is none."""


class WorkspaceDir(ApiModel):
    """The directory a run owns."""

    root: str
    """The mount point of its volume."""
    path: str
    """The absolute path of the directory."""
    claim: str
    """The claim, as it goes into the artifact."""
    relative: str
    """The path on the claim, as it goes into the artifact."""


class Owner(ApiModel):
    """The resource a run belongs to."""

    kind: str
    name: str
    namespace: str = "default"
    uid: str


class Launch(ApiModel):
    """How the processes of one attempt find each other; the pod's index comes from JOB_COMPLETION_INDEX."""

    nodes: int = Field(default=1, ge=1)
    processes_per_node: int = Field(default=1, ge=1)
    master_address: str = "127.0.0.1"
    master_port: int = Field(default=29500, ge=1, le=65535)


class RunConfig(ApiModel):
    """What every run has."""

    owner: Owner
    attempt: int = Field(ge=1)
    workspace: WorkspaceDir
    launch: Launch = Field(default_factory=Launch)
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """The port of /metrics and /progress; 0 serves none."""
    stall_seconds: float | None = Field(default=None, gt=0)
    """Seconds without any progress after which the process ends itself as Stalled; None never."""
    verify_inputs: Literal["Sizes", "Digests"] = "Sizes"
    """How input artifacts are checked against their manifests before the work starts."""


class RemoteSource(OneOf):
    """Where files are downloaded from."""

    hub: HubSource | None = None
    s3: S3Source | None = None
    http: HttpSource | None = None

    @property
    def field(self) -> str:
        """The field of the spec, for messages: spec.source.hub."""
        return f"spec.source.{self.chosen[0]}"


class ModelImportConfig(RunConfig):
    """The work of a ModelImport."""

    kind: Literal["ModelImport"] = "ModelImport"
    source: Input | None = None
    remote: RemoteSource | None = None
    """What is downloaded and then imported."""
    keep_downloads: bool = True
    initialise: Initialise | None = None
    tokenizer: Input | None = None
    """The tokenizer of a freshly initialised model."""
    sha256: dict[str, str] = Field(default_factory=dict)
    dtype: str | None = None


class TokenizerMergeConfig(RunConfig):
    """The work of a TokenizerMerge."""

    kind: Literal["TokenizerMerge"] = "TokenizerMerge"
    base: Input
    sources: list[Input]
    pad_token: bool = False
    sample: Input | None = None


class Preflight(ApiModel):
    """The training that a preflight prepares: its inputs are checked and its data made ready on a CPU."""

    device: Literal["cpu", "cuda"]
    """Where it will train."""
    world_size: int = Field(ge=1)
    """Its processes in all."""


class DatasetInput(ApiModel):
    """A dataset, on a volume or to be downloaded."""

    field: str
    """The field of the spec that names it: spec.dataset, or spec.datasets[1]."""
    label: str
    """What it is, for people: volume corpora, path zh."""
    source: Input | None = None
    remote: RemoteSource | None = None
    """Set where `source` is not."""
    sha256: dict[str, str] = Field(default_factory=dict)
    keep_downloads: bool = True
    weight: int | None = None


class TrainingConfig(RunConfig):
    """What both kinds of training have."""

    model: Input
    adapter: Input | None = None
    tokenizer: Input | None = None
    """None: the adapter's, or else the model's."""
    datasets: list[DatasetInput] = Field(min_length=1)
    device: Literal["cpu", "cuda"] = "cpu"
    deepspeed: DeepSpeed | None = None
    """None or stage 0: plain data parallelism."""
    preflight: Preflight | None = None
    """Only check and prepare, and end without an artifact; None trains."""
    report_to: ReportTo = Field(default_factory=ReportTo)


class PretrainConfig(TrainingConfig):
    """The work of a PretrainJob; every field of the recipe is resolved."""

    kind: Literal["PretrainJob"] = "PretrainJob"
    stage: Stage
    recipe: PretrainRecipe


class SFTConfig(TrainingConfig):
    """The work of an SFTJob; every field of the recipe is resolved."""

    kind: Literal["SFTJob"] = "SFTJob"
    recipe: SFTRecipe


class RecordSource(ApiModel):
    """Records that are given to an InstructionSet."""

    dataset: DatasetInput
    format: RecordFormat = "Auto"
    columns: Columns = Field(default_factory=Columns)
    conversations: Conversations = "FirstTurn"
    keep_system_prompts: bool = False
    max_records: int | None = None
    weight: int | None = None


class AskedEndpoint(ApiModel):
    """Who is asked for records, with everything resolved."""

    url: str
    """The API's base, without a slash at the end."""
    model: str
    field: str
    """The field of the spec, for messages: spec.generate.endpoint.url."""
    identity: str
    """What makes it another one: kept replies of one are none of another."""
    key_variable: str | None = None
    """The environment variable that holds the key."""
    key_place: str = ""
    """Where that comes from, for messages."""
    ours: bool = False
    """Whether it is a ModelServer: it keeps to schemas, and no proxy is on the way."""


class GenerationConfig(ApiModel):
    """What is asked for."""

    endpoint: AskedEndpoint
    spec: Generation
    seed_tasks: Input | None = None


class InstructionSetConfig(RunConfig):
    """The work of an InstructionSet."""

    kind: Literal["InstructionSet"] = "InstructionSet"
    language: Language = "zh"
    sources: list[RecordSource] = Field(default_factory=list)
    generate: GenerationConfig | None = None
    clean: Cleaning = Field(default_factory=Cleaning)
    max_records: int | None = None
    held_out_fraction: float = 0.0
    seed: int = 42


class LoRAMergeConfig(RunConfig):
    """The work of a LoRAMerge."""

    kind: Literal["LoRAMerge"] = "LoRAMerge"
    model: Input
    adapters: list[Input]
    outputs: MergeOutputs = Field(default_factory=huggingface_alone)
    importance_matrix: Input | None = None
    dtype: str | None = None
    template: Template | None = None


class ModelToEvaluate(ApiModel):
    """One model of an Evaluation."""

    name: str
    model: Input
    adapters: list[Input] = Field(default_factory=list)
    template: Template | None = None


class EvaluationConfig(RunConfig):
    """The work of an Evaluation."""

    kind: Literal["Evaluation"] = "Evaluation"
    models: list[ModelToEvaluate]
    tasks: list[Task]
    datasets: dict[str, DatasetInput] = Field(default_factory=dict)
    """The files of each task that has some, by its name."""
    thresholds: list[Threshold] = Field(default_factory=list)
    resamples: int = Field(default=1000, ge=1)
    seed: int = 42
    device: Literal["cpu", "cuda"] = "cpu"
    preflight: Preflight | None = None
    """Only check, and end without an artifact; None evaluates."""


AnyRunConfig = Annotated[
    ModelImportConfig
    | TokenizerMergeConfig
    | PretrainConfig
    | InstructionSetConfig
    | SFTConfig
    | LoRAMergeConfig
    | EvaluationConfig,
    Field(discriminator="kind"),
]
RUN_CONFIG: TypeAdapter[AnyRunConfig] = TypeAdapter(AnyRunConfig)
"""Reads a run's configuration: RUN_CONFIG.validate_json(bytes)."""


HUB_TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105 - where it is found, and no token
HUB_ENDPOINT_VARIABLE = "HF_ENDPOINT"
HUB_OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
HTTP_TOKEN_VARIABLE = "HERDSMAN_HTTP_TOKEN"  # noqa: S105
S3_KEY_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
"""The environment variables that hold what remote sources need; an S3 source's Secret has keys of the same names."""

WANDB_KEY_VARIABLE = "WANDB_API_KEY"
MLFLOW_TOKEN_VARIABLE = "MLFLOW_TRACKING_TOKEN"  # noqa: S105 - where it is found, and no token
MLFLOW_CREDENTIAL_VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""The environment variables that hold the keys of trackers; MLflow's credentialsSecret has keys of the same names."""
JUDGE_KEY_VARIABLE = "HERDSMAN_JUDGE_API_KEY"
"""The environment variable with the key of an Evaluation's judge."""
ENDPOINT_KEY_VARIABLE = "HERDSMAN_ENDPOINT_API_KEY"
"""The environment variable with the key of the API that an InstructionSet asks."""
TRAINING_PART, HELD_OUT_PART = "train", "heldout"
"""The directories of a dataset's artifact."""

API_KEY_VARIABLE = "HERDSMAN_API_KEY"
"""The environment variable that holds the key clients need, or several, one a line."""
API_KEY_FILE_VARIABLE = f"{API_KEY_VARIABLE}_FILE"
"""The environment variable with the path of a file of keys, one a line, which is read again when it changes."""


class ServerConfig(ApiModel):
    """What a server container reads."""

    kind: Literal["ModelServer"] = "ModelServer"
    owner: Owner
    model: Input
    adapters: list[Input] = Field(default_factory=list)
    engine: EngineName = "transformers"
    quantisation: Quantisation | None = None
    upstream: str | None = None
    """Where vLLM answers, beside this container."""
    adapters_file: str | None = None
    """The file with the AdapterList, which is read again when it changes; None for a server without hot adapters."""
    adapters_report: str | None = None
    """Where the AdapterReport is written, for a shell that reads files; others ask /adapters beside /metrics."""
    gguf_type: GgufType | None = None
    """The GGUF file llama.cpp takes; None: the smallest."""
    template: Template | None = None
    model_name: str
    host: str = "0.0.0.0"  # noqa: S104 - a server in a pod answers its Service
    port: int = Field(ge=1, le=65535)
    device: Literal["cpu", "cuda"] = "cpu"
    limits: ServerLimits = Field(default_factory=ServerLimits)
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """The port of /metrics; 0 serves none."""
    dialect: Dialect = "openai"
    cors_origins: list[str] = Field(default_factory=list)
    """Origins of web pages that may use the server."""
    accept_seconds: int = Field(default=0, ge=0)
    """Seconds it goes on accepting requests after SIGTERM, while those who send them hear that it stops."""


class ListedAdapter(ApiModel):
    """An adapter that is to be resident."""

    name: str
    """What clients call it."""
    source: Input


class AdapterList(ApiModel):
    """The adapters that are to be resident; the file changes while the server runs."""

    adapters: list[ListedAdapter] = Field(default_factory=list)


class AdapterReport(ApiModel):
    """What one replica says of its adapters."""

    adapters: list[AdapterStatus] = Field(default_factory=list)


class FileDigest(ApiModel):
    """One file of an artifact."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ArtifactManifest(ApiModel):
    """herdsman-artifact.json: the contract of an artifact, its files, where it came from, and its figures."""

    artifact: Artifact
    files: dict[str, FileDigest]
    """By path relative to the artifact's directory."""
    owner: Owner
    attempt: int
    inputs: dict[str, str] = Field(default_factory=dict)
    """Digests of what it was made from, by field of the spec."""
    report: list[Metric] = Field(default_factory=list)
    """Figures for people: tokens per character, held-out loss, counts."""
    created: str
    """RFC 3339 time."""
    herdsman: str
    """The version of Herdsman that made it."""


MANIFEST_NAME = "herdsman-artifact.json"
REPORT_PAGE = "report.html"
REPORT_FILES = frozenset({REPORT_PAGE, "report.md"})
"""What tells of a run in the artifact's directory. They hold times and speeds, so they are no part of its digest."""
HELD_OUT_LOSS = "heldout_loss"
"""The figure by which evaluations are compared, and the note of an evaluated checkpoint's manifest: nats a token."""
EVALUATED_STEP = "evaluated_step"
"""The note of a checkpoint's manifest that says which step that loss belongs to."""
