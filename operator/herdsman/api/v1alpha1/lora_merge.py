"""LoRAMerge: merges adapters into full weights."""

from typing import ClassVar, Literal

from pydantic import Field

from herdsman.api.meta import Resource
from herdsman.api.v1alpha1.compute import RunPolicy
from herdsman.api.v1alpha1.sources import AdapterRef, ModelRef
from herdsman.api.v1alpha1.status import Status


class LoRAMergeSpec(RunPolicy):
    """What is merged, and into which form."""

    model: ModelRef
    """The model the first adapter was trained on."""
    adapters: list[AdapterRef] = Field(min_length=1, max_length=8)
    """The adapters, applied in this order."""
    format: Literal["huggingface"] = "huggingface"
    """The form of the result: safetensors shards with config and tokenizer."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The type of the result; the model's unless set. Sums are made in float32 in any case."""
    max_shard_mebibytes: int = Field(default=4096, ge=1, le=65536)
    """The size of one file at most."""


class LoRAMerge(Resource):
    """Merges one or more adapters, in order, into full weights."""

    KIND: ClassVar[str] = "LoRAMerge"
    kind: Literal["LoRAMerge"] = "LoRAMerge"
    spec: LoRAMergeSpec
    status: Status | None = None
