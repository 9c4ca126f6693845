"""SFTJob: tunes a model on instructions."""

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from herdsman.api.meta import Resource
from herdsman.api.v1alpha1.compute import RunPolicy
from herdsman.api.v1alpha1.datasets import DATASET_RULES, InstructionDataset, MixedInstructions, dataset_problem
from herdsman.api.v1alpha1.recipes import LENGTH_RULE, SFTRecipe, length_problem
from herdsman.api.v1alpha1.report_to import ReportTo
from herdsman.api.v1alpha1.schema import MUTABLE, cel
from herdsman.api.v1alpha1.sources import AdapterRef, ModelRef, TokenizerRef
from herdsman.api.v1alpha1.status import Status


class SFTJobSpec(RunPolicy):
    """What is tuned, on what, and how."""

    model_config = ConfigDict(json_schema_extra=cel(LENGTH_RULE, *DATASET_RULES))

    model: ModelRef
    """The base model."""
    adapter: AdapterRef | None = None
    """An adapter to go on from, such as that of the pre-training; unless set, a new LoRA."""
    tokenizer: TokenizerRef | None = None
    """The tokenizer; that of the adapter or the model unless set."""
    dataset: InstructionDataset | None = None
    """Records that an InstructionSet made, or files of them with instruction, input and output: *.json, *.jsonl or
    *.parquet; the first two may be packed (.gz, .bz2, .xz, .zst)."""
    datasets: list[MixedInstructions] = Field(default_factory=list, max_length=32)
    """Several datasets, mixed by weights, instead of one."""
    recipe: SFTRecipe = Field(default_factory=SFTRecipe)
    """How; the preset fills what is not set."""
    report_to: ReportTo = Field(default_factory=ReportTo, json_schema_extra=MUTABLE)
    """Trackers of experiments that hear of every step; a change holds from the next attempt on."""

    @model_validator(mode="after")
    def _rules(self) -> "SFTJobSpec":
        if (problem := length_problem(self.recipe) or dataset_problem(self.dataset, self.datasets)) is not None:
            raise ValueError(problem)
        return self


class SFTJob(Resource):
    """Tunes a model on instructions with a prompt template; makes an adapter."""

    KIND: ClassVar[str] = "SFTJob"
    kind: Literal["SFTJob"] = "SFTJob"
    spec: SFTJobSpec
    status: Status | None = None
