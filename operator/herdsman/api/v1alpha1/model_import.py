"""ModelImport: brings base weights in, or makes freshly initialised ones."""

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from herdsman.api.meta import ApiModel, Resource
from herdsman.api.v1alpha1.compute import RunPolicy
from herdsman.api.v1alpha1.remote_sources import HttpSource, HubSource, S3Source
from herdsman.api.v1alpha1.schema import OneOf, cel
from herdsman.api.v1alpha1.sources import RelativePath, TokenizerRef, VolumeSource
from herdsman.api.v1alpha1.status import Digest, Status

_RULES = (
    ("self.hiddenSize % self.attentionHeads == 0", "hiddenSize must be a multiple of attentionHeads"),
    (
        "!has(self.keyValueHeads) || self.attentionHeads % self.keyValueHeads == 0",
        "attentionHeads must be a multiple of keyValueHeads",
    ),
)


class Initialise(ApiModel):
    """A Llama with random weights, for tests and for training from scratch."""

    model_config = ConfigDict(json_schema_extra=cel(*_RULES))

    tokenizer: TokenizerRef
    """Its tokenizer; the vocabulary's size follows from it."""
    hidden_size: int = Field(default=256, ge=8, le=16384)
    """Width of the residual stream; a multiple of attentionHeads."""
    intermediate_size: int = Field(default=688, ge=8, le=65536)
    """Width of the feed-forward layer."""
    layers: int = Field(default=4, ge=1, le=200)
    """Transformer blocks."""
    attention_heads: int = Field(default=8, ge=1, le=256)
    """Attention heads."""
    key_value_heads: int | None = Field(default=None, ge=1, le=256)
    """Key and value heads, for grouped-query attention; as many as attentionHeads unless set."""
    max_position_embeddings: int = Field(default=2048, ge=16, le=1048576)
    """The longest sequence."""
    rope_theta: float = Field(default=10000.0, gt=1, le=1e9)
    """The base of the rotary embedding."""
    tie_embeddings: bool = False
    """Whether the head shares the embedding's matrix."""
    seed: int = Field(default=0, ge=0, le=4294967295)
    """The seed of the weights."""

    @model_validator(mode="after")
    def _rules(self) -> "Initialise":
        if self.hidden_size % self.attention_heads:
            raise ValueError(_RULES[0][1])
        if self.key_value_heads is not None and self.attention_heads % self.key_value_heads:
            raise ValueError(_RULES[1][1])
        return self


class ModelSource(OneOf):
    """Where the model comes from."""

    volume: VolumeSource | None = None
    """A directory with a model, or one GGUF file."""
    hub: HubSource | None = None
    """A repository of a model hub."""
    s3: S3Source | None = None
    """A directory of an S3 bucket."""
    http: HttpSource | None = None
    """Files behind URLs."""
    initialise: Initialise | None = None
    """Random weights."""


class ModelImportSpec(RunPolicy):
    """What is imported.

    Known forms: Meta's consolidated.*.pth with params.json, Hugging Face directories with safetensors or .bin files,
    and GGUF. All of them become Hugging Face safetensors.
    """

    source: ModelSource
    """Where the model comes from."""
    sha256: dict[RelativePath, Digest] = Field(default_factory=dict, max_length=200)
    """Expected SHA-256 of files of the source; a file that differs is refused."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The type the weights are stored in; unless set, that of the source, and bfloat16 for GGUF."""
    keep_downloads: bool = True
    """Keeps what was downloaded on the workspace's volume, addressed by its content, so that another import of the same
    files copies nothing."""


class ModelImport(Resource):
    """Brings base weights in from a hub, a bucket, the web or a volume and verifies them, or initialises new ones."""

    KIND: ClassVar[str] = "ModelImport"
    kind: Literal["ModelImport"] = "ModelImport"
    spec: ModelImportSpec
    status: Status | None = None
