"""ModelServer: serves a model with the OpenAI API."""

from typing import ClassVar, Literal

from pydantic import Field

from herdsman.api.meta import ApiModel, Resource
from herdsman.api.v1alpha1.compute import Compute
from herdsman.api.v1alpha1.recipes import Template
from herdsman.api.v1alpha1.schema import MUTABLE
from herdsman.api.v1alpha1.sources import AdapterRef, ModelRef
from herdsman.api.v1alpha1.status import Status


class ServerLimits(ApiModel):
    """What one replica accepts."""

    max_tokens: int = Field(default=1024, ge=1, le=131072)
    """Tokens of an answer at most."""
    queue_length: int = Field(default=32, ge=1, le=10000)
    """Requests that may wait; more are refused with 429."""


class ModelServerSpec(ApiModel):
    """What is served, and how."""

    model: ModelRef
    """The model."""
    adapters: list[AdapterRef] = Field(default_factory=list, max_length=8)
    """Adapters applied to it in memory, in this order."""
    engine: Literal["transformers"] = "transformers"
    """What computes the answers."""
    template: Template | None = None
    """The prompt template; unless set, the one the model was tuned with."""
    model_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=96)
    """The name clients ask for; the resource's name unless set."""
    port: int = Field(default=8000, ge=1024, le=65535)
    """The port of the Service; with `herdsman run`, of this machine."""
    replicas: int = Field(default=1, ge=0, le=64, json_schema_extra=MUTABLE)
    """Pods that serve; `herdsman run` keeps one process, or none at 0."""
    limits: ServerLimits = Field(default_factory=ServerLimits)
    """What one replica accepts."""
    compute: Compute = Field(default_factory=Compute)
    """Devices and scheduling of the pods."""


class ModelServer(Resource):
    """Serves a model, or a base with adapters, with the OpenAI API."""

    KIND: ClassVar[str] = "ModelServer"
    kind: Literal["ModelServer"] = "ModelServer"
    spec: ModelServerSpec
    status: Status | None = None
