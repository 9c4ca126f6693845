"""LoRAMerge: merges adapters into full weights, and writes them in the forms that other tools want."""

from typing import ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from herdsman.api.meta import ApiModel, Resource
from herdsman.api.v1alpha1.compute import RunPolicy
from herdsman.api.v1alpha1.recipes import Template
from herdsman.api.v1alpha1.schema import cel
from herdsman.api.v1alpha1.sources import AdapterRef, ImportanceMatrixRef, ModelRef
from herdsman.api.v1alpha1.status import Status

GgufType = Literal["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]


class HuggingFaceOutput(ApiModel):
    """safetensors shards with config and tokenizer: what every other resource reads."""

    max_shard_mebibytes: int = Field(default=4096, ge=1, le=65536)
    """The size of one file at most."""


_SHARDS = "shards must be 1, 2, 4 or 8"


class PthOutput(ApiModel):
    """Meta's layout: consolidated.*.pth, params.json and tokenizer.model, in the directory `pth`."""

    model_config = ConfigDict(json_schema_extra=cel(("!has(self.shards) || self.shards in [1, 2, 4, 8]", _SHARDS)))

    shards: int | None = Field(default=None, ge=1, le=8)
    """Files the weights are split over: 1, 2, 4 or 8; unless set, as many as Meta publishes for a model of this
    width."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.shards not in (None, 1, 2, 4, 8):
            raise ValueError(_SHARDS)
        return self


class GgufOutput(ApiModel):
    """One file of llama.cpp, `gguf/NAME-TYPE.gguf`."""

    type: GgufType = "Q8_0"
    """How the matrices are stored, as llama.cpp's own quantiser does it. Norms stay in float32. The quantised types but
    Q8_0 store the head (or an embedding that is the head) as Q6_K. Q4_K and Q5_K are llama.cpp's mixtures Q4_K_M and
    Q5_K_M, which store the values and the down projections of some layers as Q6_K. Where rows are no multiple of 256
    values, Q5_0, Q5_1 and Q8_0 take the places of Q4_K, Q5_K and Q6_K."""


_QUOTES = "system cannot hold three double quotes, with which a Modelfile ends it"


class OllamaOutput(ApiModel):
    """A Modelfile for Ollama beside the GGUF files: template, stops, system prompt and temperature."""

    model_config = ConfigDict(json_schema_extra=cel(('!has(self.system) || !self.system.contains(\'"""\')', _QUOTES)))

    type: GgufType | None = None
    """Which of the GGUF files it names; the first unless set."""
    system: str | None = Field(default=None, max_length=4096)
    """The system prompt; that of the prompt template unless set."""
    temperature_percent: int = Field(default=20, ge=0, le=200)
    """The sampling temperature in hundredths: 20 is the recipe's 0.2."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.system is not None and '"""' in self.system:
            raise ValueError(_QUOTES)
        return self


_SOME = "name at least one of huggingface, pth and gguf"
_TYPES = "each type may stand in gguf once"
_MATRIX = "importanceMatrix is for the files of gguf: list some"
_OLLAMA = "ollama names a file of gguf: list its type there"


class MergeOutputs(ApiModel):
    """The forms the result is written in, all in one pass."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("has(self.huggingface) || has(self.pth) || (has(self.gguf) && size(self.gguf) > 0)", _SOME),
            ("!has(self.gguf) || self.gguf.all(a, self.gguf.exists_one(b, b.type == a.type))", _TYPES),
            ("!has(self.importanceMatrix) || (has(self.gguf) && size(self.gguf) > 0)", _MATRIX),
            (
                "!has(self.ollama) || (has(self.gguf) && size(self.gguf) > 0"
                " && (!has(self.ollama.type) || self.gguf.exists(g, g.type == self.ollama.type)))",
                _OLLAMA,
            ),
        )
    )

    huggingface: HuggingFaceOutput | None = None
    """A Hugging Face directory."""
    pth: PthOutput | None = None
    """Meta's layout."""
    gguf: list[GgufOutput] = Field(default_factory=list, max_length=11)
    """Files of llama.cpp."""
    importance_matrix: ImportanceMatrixRef | None = None
    """Which columns of each matrix matter most, so that quantised types round these best; all count alike without."""
    ollama: OllamaOutput | None = None
    """A Modelfile."""

    @property
    def formats(self) -> list[Literal["huggingface", "pth", "gguf"]]:
        """The forms, as the artifact's contract lists them."""
        given = {"huggingface": self.huggingface is not None, "pth": self.pth is not None, "gguf": bool(self.gguf)}
        return [name for name in ("huggingface", "pth", "gguf") if given[name]]

    @model_validator(mode="after")
    def _rules(self) -> Self:
        types = [output.type for output in self.gguf]
        if not self.formats:
            raise ValueError(_SOME)
        if len(set(types)) < len(types):
            raise ValueError(_TYPES)
        if self.importance_matrix is not None and not types:
            raise ValueError(_MATRIX)
        if self.ollama is not None and (not types or (self.ollama.type or types[0]) not in types):
            raise ValueError(_OLLAMA)
        return self


def huggingface_alone() -> MergeOutputs:
    """Return the outputs of a merge that names none."""
    return MergeOutputs(huggingface=HuggingFaceOutput())


class LoRAMergeSpec(RunPolicy):
    """What is merged, and into which form."""

    model: ModelRef
    """The model the first adapter was trained on."""
    adapters: list[AdapterRef] = Field(default_factory=list, max_length=8)
    """The adapters, applied in this order; none to write a model in other forms."""
    outputs: MergeOutputs = Field(default_factory=huggingface_alone)
    """The forms of the result; a Hugging Face directory unless set."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The type of the Hugging Face and pth outputs; the model's unless set. Sums are made in float32 in any case, and
    quantised types are computed from the float32 sums."""
    template: Template | None = None
    """The prompt template for the chat template of GGUF files and for Ollama; unless set, the one the model was tuned
    with."""


class LoRAMerge(Resource):
    """Merges one or more adapters, in order, into full weights."""

    KIND: ClassVar[str] = "LoRAMerge"
    kind: Literal["LoRAMerge"] = "LoRAMerge"
    spec: LoRAMergeSpec
    status: Status | None = None
