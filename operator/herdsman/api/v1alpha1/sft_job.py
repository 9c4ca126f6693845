"""SFTJob: tunes a model on instructions."""

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from herdsman.api.meta import Resource
from herdsman.api.v1alpha1.compute import RunPolicy
from herdsman.api.v1alpha1.recipes import SFTRecipe
from herdsman.api.v1alpha1.report_to import ReportTo
from herdsman.api.v1alpha1.schema import MUTABLE, cel
from herdsman.api.v1alpha1.sources import AdapterRef, InstructionsRef, ModelRef, TokenizerRef
from herdsman.api.v1alpha1.status import Status

_RULES = (
    ("!(has(self.recipe.epochs) && has(self.recipe.maxSteps))", "set recipe.epochs or recipe.maxSteps, not both"),
)


class SFTJobSpec(RunPolicy):
    """What is tuned, on what, and how."""

    model_config = ConfigDict(json_schema_extra=cel(*_RULES))

    model: ModelRef
    """The base model."""
    adapter: AdapterRef | None = None
    """An adapter to go on from, such as that of the pre-training; unless set, a new LoRA."""
    tokenizer: TokenizerRef | None = None
    """The tokenizer; that of the adapter or the model unless set."""
    dataset: InstructionsRef
    """Records with instruction, input and output (*.json, *.jsonl), or those that an InstructionSet made."""
    recipe: SFTRecipe = Field(default_factory=SFTRecipe)
    """How; the preset fills what is not set."""
    report_to: ReportTo = Field(default_factory=ReportTo, json_schema_extra=MUTABLE)
    """Trackers of experiments that hear of every step; a change holds from the next attempt on."""

    @model_validator(mode="after")
    def _rules(self) -> "SFTJobSpec":
        if self.recipe.epochs is not None and self.recipe.max_steps is not None:
            raise ValueError(_RULES[0][1])
        return self


class SFTJob(Resource):
    """Tunes a model on instructions with a prompt template; makes an adapter."""

    KIND: ClassVar[str] = "SFTJob"
    kind: Literal["SFTJob"] = "SFTJob"
    spec: SFTJobSpec
    status: Status | None = None
