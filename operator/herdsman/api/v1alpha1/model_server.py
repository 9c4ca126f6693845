"""ModelServer: serves a model with the OpenAI API. Unlike a run it may change: docs/decisions/0009."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from herdsman.api.meta import ApiModel, Resource
from herdsman.api.v1alpha1.compute import DNS_SUBDOMAIN, IMAGE, Compute, LabelValue, QualifiedName
from herdsman.api.v1alpha1.lora_merge import GgufType
from herdsman.api.v1alpha1.recipes import Template
from herdsman.api.v1alpha1.schema import MUTABLE, OneOf, cel
from herdsman.api.v1alpha1.secrets import SecretKeyRef, SecretName
from herdsman.api.v1alpha1.sources import AdapterRef, GateRef, ModelRef
from herdsman.api.v1alpha1.status import Status

MAX_REPLICAS = 64
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"
"""What clients may call a model."""
MAX_HOT_ADAPTERS = 32
HOST = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
"""A host name, or one with a wildcard in place of its first label."""
URL_PATH = r"^/([A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*)?$"
"""A path of an URL, without a final slash."""
DURATION = r"^[1-9][0-9]{0,4}(ms|s|m|h)$"
ORIGIN = r"^https?://[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*(:[1-9][0-9]{0,4})?$"
"""What a browser sends as Origin: scheme, host, and the port where it is not the scheme's own."""
METRICS_PORT = 9400
"""Where replicas and trainers serve their metrics, unless something else is said."""


Dialect = Literal["openai", "chinese-llama-alpaca"]
"""Whose API a server speaks."""
EngineName = Literal["transformers", "llamacpp", "vllm"]
"""What computes the answers."""
Quantisation = Literal["int8", "int4"]
"""How many bits a weight takes."""


class ServerLimits(ApiModel):
    """What one replica accepts."""

    max_tokens: int = Field(default=1024, ge=1, le=131072)
    """Tokens of an answer at most."""
    prompt_tokens: int | None = Field(default=None, ge=1, le=1048576)
    """Tokens of a prompt at most; what the model takes unless set."""
    body_bytes: int = Field(default=4194304, ge=1024, le=268435456)
    """Bytes of a request's body at most; a larger one is refused with 413 while it is read."""
    body_seconds: int = Field(default=30, ge=1, le=3600)
    """Seconds a client may take to send a body; 408 after that."""
    request_seconds: int = Field(default=600, ge=1, le=86400)
    """Seconds a request may take in all, waiting included; 504 after that, or the end of the stream with an error."""
    streams: int = Field(default=64, ge=1, le=10000)
    """Answers that may be streamed at once, those that wait included; more are refused with 429."""
    queue_length: int = Field(default=32, ge=1, le=10000)
    """Requests that may wait; more are refused with 429."""
    parallel: int | None = Field(default=None, ge=1, le=256)
    """Answers that are computed at once, in one running batch; unless set 64 on a GPU, and on a CPU 8 with transformers
    and 4 with llama.cpp, where they share the memory of one context. They wait where memory for conversations is
    taken."""
    drain_seconds: int = Field(default=120, ge=1, le=3600)
    """Seconds the answers under way may take when the replica is stopped; what is not finished then is cut off."""


class ApiKey(ApiModel):
    """What clients have to send as `Authorization: Bearer KEY`."""

    secret: SecretKeyRef
    """Where it is, or several of them, one a line. Replicas notice within two minutes that the Secret has changed. With
    `herdsman run` the environment variable HERDSMAN_API_KEY is taken instead."""


class ServerIngress(ApiModel):
    """A way in from outside the cluster."""

    host: str = Field(pattern=HOST, max_length=253)
    """The host name, such as chat.example.com."""
    path: str = Field(default="/v1", pattern=URL_PATH, max_length=200)
    """What is passed on, with all below it. /v1 is the OpenAI API; / is everything but the metrics."""
    class_name: str | None = Field(default=None, pattern=DNS_SUBDOMAIN, max_length=253)
    """The IngressClass; the cluster's default unless set."""
    tls_secret_name: SecretName | None = None
    """The Secret with the certificate of the host; none for plain HTTP."""
    annotations: dict[QualifiedName, Annotated[str, Field(max_length=2048)]] = Field(
        default_factory=dict, max_length=20
    )
    """Annotations for the ingress controller, such as a longer proxy timeout."""


_METRIC = "set targetCPUUtilizationPercentage, targetWaitingRequests or targetTokensPerSecond, or several of them"
_ORDER = "minReplicas cannot be above maxReplicas"


class HotAdapter(ApiModel):
    """An adapter that requests choose by its name; it is loaded and unloaded while the server runs."""

    name: str = Field(pattern=MODEL_NAME, max_length=96)
    """The name clients ask for as `model`."""
    adapter: AdapterRef
    """The adapter. It was trained on the model, with spec.adapters beneath it, and leaves the vocabulary as it is."""


_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_RANK = f"maxLoraRank must be one of {', '.join(map(str, _LORA_RANKS))}"
_TAKEN = ("--model", "--host", "--port", "--served-model-name", "--api-key", "--tensor-parallel-size", "--enable-lora")
_EXTRA = f"extraArgs cannot name {', '.join(_TAKEN)}, which other fields say"


class Vllm(ApiModel):
    """What is peculiar to the engine vllm."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (f"!has(self.maxLoraRank) || self.maxLoraRank in [{', '.join(map(str, _LORA_RANKS))}]", _RANK),
            (
                "!has(self.extraArgs) || self.extraArgs.all(given, "
                + " && ".join(f"given != '{name}' && !given.startsWith('{name}=')" for name in _TAKEN)
                + ")",
                _EXTRA,
            ),
        )
    )

    image: str | None = Field(default=None, pattern=IMAGE, max_length=400)
    """The image of vLLM, instead of the operator's default (images.vllm of the chart)."""
    max_model_length: int | None = Field(default=None, ge=16, le=1048576)
    """Tokens of prompt and answer together; what the model takes unless set. Less needs less memory."""
    max_lora_rank: int = Field(default=64, ge=8, le=512)
    """The highest rank of a hot adapter: 8, 16, 32, 64, 128, 256, 320 or 512; memory is set aside for it."""
    memory_percent: int = Field(default=90, ge=10, le=98)
    """Percent of each GPU's memory that it takes for weights and conversations."""
    extra_args: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(default_factory=list, max_length=32)
    """Further arguments of `vllm serve`, as its documentation says."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.max_lora_rank not in _LORA_RANKS:
            raise ValueError(_RANK)
        if any(given.partition("=")[0] in _TAKEN for given in self.extra_args):
            raise ValueError(_EXTRA)
        return self


class Autoscaling(ApiModel):
    """As many replicas as the load needs; of several targets the one that asks for most counts."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "has(self.targetCPUUtilizationPercentage) || has(self.targetWaitingRequests)"
                " || has(self.targetTokensPerSecond)",
                _METRIC,
            ),
            ("self.minReplicas <= self.maxReplicas", _ORDER),
        )
    )

    min_replicas: int = Field(default=1, ge=1, le=MAX_REPLICAS)
    """Replicas at least."""
    max_replicas: int = Field(ge=1, le=MAX_REPLICAS)
    """Replicas at most."""
    target_cpu_utilization_percentage: int | None = Field(
        default=None, alias="targetCPUUtilizationPercentage", ge=1, le=1000
    )
    """Percent of compute.resources.cpu that a replica should use on average; needs a metrics server."""
    target_waiting_requests: int | None = Field(default=None, ge=1, le=10000)
    """Requests that should wait in a replica on average (herdsman_server_waiting_requests); needs an adapter that
    offers Prometheus' metrics of pods to Kubernetes."""
    target_tokens_per_second: int | None = Field(default=None, ge=1, le=1000000)
    """Tokens that a replica should generate in a second on average (herdsman_server_completion_tokens_per_second, which
    the adapter makes of the server's counter of tokens); needs such an adapter too."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        targets = (self.target_cpu_utilization_percentage, self.target_waiting_requests, self.target_tokens_per_second)
        if all(target is None for target in targets):
            raise ValueError(_METRIC)
        if self.min_replicas > self.max_replicas:
            raise ValueError(_ORDER)
        return self


class ScaleToZero(ApiModel):
    """No replica is kept while nobody asks. An activator takes the requests of clients, holds those that come while no
    replica answers, has one started, and passes them on. With autoscaling the number follows the load from one upwards.
    `herdsman run` keeps its process."""

    after_idle_seconds: int = Field(default=900, ge=5, le=604800)
    """Seconds without a request after which the replicas go. Probes and lists of the models are no requests here, nor
    is what comes without a right key where one is needed."""
    hold_seconds: int = Field(default=600, ge=1, le=86400)
    """Seconds a request waits for a replica at most; 503 with Retry-After after that."""
    hold_requests: int | None = Field(default=None, ge=1, le=10000)
    """Requests that wait for a replica at most; more are refused with 429 and Retry-After. Unless set,
    limits.queueLength: as many as one replica then lets wait."""
    activators: int = Field(default=1, ge=1, le=8)
    """Pods that hold requests and pass them on. One that is moved is replaced without a gap; several outlast the loss
    of a node."""


class DisruptionBudget(OneOf):
    """How many replicas may be evicted at once, by a node that is drained for example."""

    min_available: int | None = Field(default=None, ge=0, le=MAX_REPLICAS)
    """Replicas that stay."""
    min_available_percent: int | None = Field(default=None, ge=0, le=100)
    """Percent of the replicas that stay."""
    max_unavailable: int | None = Field(default=None, ge=0, le=MAX_REPLICAS)
    """Replicas that may go."""
    max_unavailable_percent: int | None = Field(default=None, ge=0, le=100)
    """Percent of the replicas that may go; 100 lets all of them be evicted."""


class Monitoring(ApiModel):
    """How Prometheus finds the server."""

    service_monitor: bool = False
    """Makes a ServiceMonitor, for a Prometheus that the chart's PodMonitor does not serve; needs the Prometheus
    operator's CustomResourceDefinitions."""
    interval: str = Field(default="30s", pattern=DURATION, max_length=8)
    """Time between two scrapes."""
    labels: dict[QualifiedName, LabelValue] = Field(default_factory=dict, max_length=20)
    """Labels of the ServiceMonitor, by which Prometheus chooses."""


_PORTS = f"metricsPort ({METRICS_PORT} unless set) cannot be the port of the API"
_NAMES = "each name may stand in hotAdapters once, and the model's own name cannot"
_FILE = "the engine llamacpp serves one file: hotAdapters and quantisation are for transformers and vllm"
_VLLM = "vllm is about the engine vllm: set engine: vllm"
_GPUS = "the engine vllm needs GPUs: set compute.gpusPerNode"
_CPU = "autoscaling.targetCPUUtilizationPercentage is a share of compute.resources.cpu: set that too"


class ModelServerSpec(ApiModel):
    """What is served, and how. All of it may change; the replicas are then replaced one by one."""

    model_config = ConfigDict(
        json_schema_extra={
            **MUTABLE,
            **cel(
                (
                    "!has(self.autoscaling) || !has(self.autoscaling.targetCPUUtilizationPercentage)"
                    " || has(self.compute.resources.cpu)",
                    _CPU,
                ),
                (f"self.port != (has(self.metricsPort) ? self.metricsPort : {METRICS_PORT})", _PORTS),
                (
                    "!has(self.hotAdapters) || self.hotAdapters.all(one, "
                    "self.hotAdapters.exists_one(other, other.name == one.name)"
                    " && (!has(self.modelName) || self.modelName != one.name))",
                    _NAMES,
                ),
                (
                    "!has(self.engine) || self.engine != 'llamacpp'"
                    " || ((!has(self.hotAdapters) || size(self.hotAdapters) == 0) && !has(self.quantisation))",
                    _FILE,
                ),
                ("!has(self.vllm) || (has(self.engine) && self.engine == 'vllm')", _VLLM),
                (
                    "!has(self.engine) || self.engine != 'vllm'"
                    " || (has(self.compute) && has(self.compute.gpusPerNode) && self.compute.gpusPerNode > 0)",
                    _GPUS,
                ),
            ),
        }
    )

    model: ModelRef
    """The model."""
    adapters: list[AdapterRef] = Field(default_factory=list, max_length=8)
    """Adapters applied to it in memory, in this order."""
    hot_adapters: list[HotAdapter] = Field(default_factory=list, max_length=MAX_HOT_ADAPTERS)
    """Adapters that requests choose by their name, beside the model itself. A change of the list is noticed by the
    replicas within two minutes, without a restart, unless it is the first adapter, or its volume is not mounted yet."""
    after: list[GateRef] = Field(default_factory=list, max_length=8)
    """What has to have gone well before this is served, beside its inputs: Evaluations whose thresholds are met. Until
    then replicas of before go on serving what they serve."""
    engine: EngineName | None = None
    """What computes the answers: transformers from Hugging Face weights, llama.cpp from a GGUF file, or vLLM, in an
    image of its own beside ours, from Hugging Face weights on GPUs. Unless set, what the model is stored for; where it
    is both, transformers on GPUs and llama.cpp on CPUs."""
    quantisation: Quantisation | None = None
    """Weights are kept in 8 or 4 bits, rounded while they are loaded: less memory, a little less exact; embedding and
    head stay as they are. With vllm only int4 (bitsandbytes)."""
    vllm: Vllm | None = None
    """What is peculiar to the engine vllm."""
    gguf_type: GgufType | None = None
    """Which of several GGUF files llama.cpp takes; the smallest unless set."""
    dialect: Dialect = "openai"
    """The API: OpenAI's, or that of the demonstration servers of Chinese-LLaMA-Alpaca for clients that were written for
    those (they look for it on port 19327)."""
    template: Template | None = None
    """The prompt template; unless set, the one the model was tuned with."""
    model_name: str | None = Field(default=None, pattern=MODEL_NAME, max_length=96)
    """The name clients ask for; the resource's name unless set."""
    port: int = Field(default=8000, ge=1024, le=65535)
    """The port of the Service; with `herdsman run`, of this machine."""
    metrics_port: int | None = Field(default=None, ge=1024, le=65535)
    """The port of the pods' metrics, which is no port of the Service: 9400 unless set. With `herdsman run`, of this
    machine, and none unless set."""
    cors_origins: list[Annotated[str, Field(pattern=ORIGIN, max_length=300)]] = Field(
        default_factory=list, max_length=32
    )
    """Web pages of other origins that may use the server from a browser, such as https://app.example.com; none unless
    set."""
    replicas: int = Field(default=1, ge=0, le=MAX_REPLICAS)
    """Pods that serve, 0 for none. With autoscaling only 0 counts, and switches the server off. `herdsman run` keeps
    one process, or none at 0."""
    limits: ServerLimits = Field(default_factory=ServerLimits)
    """What one replica accepts."""
    api_key: ApiKey | None = None
    """The key that clients need; without one everybody who reaches the server may use it."""
    compute: Compute = Field(default_factory=Compute)
    """Devices and scheduling of the pods."""
    ingress: ServerIngress | None = None
    """A way in from outside the cluster."""
    autoscaling: Autoscaling | None = None
    """The number of replicas follows the load."""
    scale_to_zero: ScaleToZero | None = None
    """No replica is kept while nobody asks; the next request has one started, and waits for it."""
    disruption_budget: DisruptionBudget | None = None
    """How many replicas may be evicted at once; one, unless set, where there are several."""
    monitoring: Monitoring = Field(default_factory=Monitoring)
    """How Prometheus finds the server."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        scaling = self.autoscaling
        by_cpu = scaling is not None and scaling.target_cpu_utilization_percentage is not None
        if by_cpu and self.compute.resources.cpu is None:
            raise ValueError(_CPU)
        if self.port == (self.metrics_port or METRICS_PORT):
            raise ValueError(_PORTS)
        hot = [adapter.name for adapter in self.hot_adapters]
        if len(set(hot)) < len(hot) or self.model_name in hot:
            raise ValueError(_NAMES)
        if self.engine == "llamacpp" and (hot or self.quantisation is not None):
            raise ValueError(_FILE)
        if self.vllm is not None and self.engine != "vllm":
            raise ValueError(_VLLM)
        if self.engine == "vllm" and not self.compute.gpus_per_node:
            raise ValueError(_GPUS)
        return self


class ModelServer(Resource):
    """Serves a model, or a base with adapters, with the OpenAI API."""

    KIND: ClassVar[str] = "ModelServer"
    kind: Literal["ModelServer"] = "ModelServer"
    spec: ModelServerSpec
    status: Status | None = None
