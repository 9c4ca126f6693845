"""PretrainJob: continues the pre-training on text of the new language."""

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from herdsman.api.meta import Resource
from herdsman.api.v1alpha1.compute import RunPolicy
from herdsman.api.v1alpha1.datasets import DATASET_RULES, DatasetSource, MixedDataset, dataset_problem
from herdsman.api.v1alpha1.recipes import LENGTH_RULE, PretrainRecipe, Stage, length_problem
from herdsman.api.v1alpha1.report_to import ReportTo
from herdsman.api.v1alpha1.schema import MUTABLE, cel
from herdsman.api.v1alpha1.sources import AdapterRef, ModelRef, TokenizerRef
from herdsman.api.v1alpha1.status import Status

_STAGE_RULES = (
    ("!(self.stage == 'Full' && has(self.adapter))", "stage Full trains all weights: merge the adapter first"),
    (
        "self.stage != 'EmbeddingsOnly' || !has(self.recipe.lora.trainFully) || size(self.recipe.lora.trainFully) > 0",
        "stage EmbeddingsOnly needs embed_tokens or lm_head in recipe.lora.trainFully",
    ),
)


class PretrainJobSpec(RunPolicy):
    """What is trained, on what, and how."""

    model_config = ConfigDict(json_schema_extra=cel(LENGTH_RULE, *DATASET_RULES, *_STAGE_RULES))

    model: ModelRef
    """The base model."""
    adapter: AdapterRef | None = None
    """An adapter to go on from: its embeddings and LoRA matrices are loaded and trained further."""
    tokenizer: TokenizerRef | None = None
    """The tokenizer; that of the adapter or the model unless set. A larger one grows the embeddings."""
    dataset: DatasetSource | None = None
    """Text: *.txt, or *.jsonl and *.parquet with a "text"; text files may be packed (.gz, .bz2, .xz, .zst)."""
    datasets: list[MixedDataset] = Field(default_factory=list, max_length=32)
    """Several datasets, mixed by weights, instead of one."""
    stage: Stage = "LoRA"
    """EmbeddingsOnly, LoRA (with embeddings and head) or Full."""
    recipe: PretrainRecipe = Field(default_factory=PretrainRecipe)
    """How; the preset fills what is not set."""
    report_to: ReportTo = Field(default_factory=ReportTo, json_schema_extra=MUTABLE)
    """Trackers of experiments that hear of every step; a change holds from the next attempt on."""

    @model_validator(mode="after")
    def _rules(self) -> "PretrainJobSpec":
        if (problem := length_problem(self.recipe) or dataset_problem(self.dataset, self.datasets)) is not None:
            raise ValueError(problem)
        if self.stage == "Full" and self.adapter is not None:
            raise ValueError(_STAGE_RULES[0][1])
        if self.stage == "EmbeddingsOnly" and self.recipe.lora.train_fully == []:
            raise ValueError(_STAGE_RULES[1][1])
        return self


class PretrainJob(Resource):
    """Continues the pre-training of a model: embeddings first, then LoRA with embeddings and head, or all weights."""

    KIND: ClassVar[str] = "PretrainJob"
    kind: Literal["PretrainJob"] = "PretrainJob"
    spec: PretrainJobSpec
    status: Status | None = None
