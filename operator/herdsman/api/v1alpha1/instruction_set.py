"""InstructionSet: makes instruction records, by cleaning given ones, by asking a model for new ones, or both."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from herdsman.api.meta import ApiModel, Resource
from herdsman.api.v1alpha1.compute import RunPolicy
from herdsman.api.v1alpha1.datasets import InstructionDataset
from herdsman.api.v1alpha1.generation import Generation
from herdsman.api.v1alpha1.schema import cel
from herdsman.api.v1alpha1.status import Status

Language = Literal[
    "ar", "bn", "de", "el", "en", "es", "fa", "fr", "he", "hi", "id", "it", "ja",
    "ko", "nl", "pl", "pt", "ru", "ta", "te", "th", "tr", "uk", "ur", "vi", "zh",
]  # fmt: skip
RecordFormat = Literal["Auto", "Alpaca", "ShareGPT", "Messages"]
Conversations = Literal["FirstTurn", "EachTurn", "WithHistory"]
ColumnName = Annotated[str, Field(min_length=1, max_length=100)]


class Columns(ApiModel):
    """What the columns or keys of a source are called."""

    instruction: ColumnName | None = None
    """The one with the instruction; unless set, the first there is of instruction, prompt, question and query."""
    input: ColumnName | None = None
    """The one with the material; unless set, the first there is of input and context."""
    output: ColumnName | None = None
    """The one with the answer; unless set, the first there is of output, response, answer and completion."""


class InstructionSource(ApiModel):
    """Records that are given."""

    dataset: InstructionDataset
    """Files (*.json, *.jsonl, *.csv, *.tsv, *.parquet), or the records that another InstructionSet made."""
    format: RecordFormat = "Auto"
    """How a record is written: Alpaca (instruction, input, output), ShareGPT (conversations of from and value) or
    Messages (OpenAI's role and content). Auto sees it by the keys of each record."""
    columns: Columns = Field(default_factory=Columns)
    """What the columns of records like Alpaca's are called."""
    conversations: Conversations = "FirstTurn"
    """What becomes of a conversation of several turns: FirstTurn takes the first question and its answer, EachTurn
    makes a record of every question and its answer, and WithHistory one record of the last answer, with all that was
    said before in its input."""
    keep_system_prompts: bool = False
    """Puts a conversation's system prompt before its first question; without it system prompts are left out."""
    max_records: int | None = Field(default=None, ge=1, le=100000000)
    """Records that are kept at most, the first ones; all unless set."""
    weight: int | None = Field(default=None, ge=1, le=10000)
    """Its share of the set beside the weights of the others, as far as the scarcest suffices: no record is repeated.
    Set it for all sources (and generate) or for none; without weights everything is taken."""


class Cleaning(ApiModel):
    """What a record has to be to stay. Everything that is dropped is counted with its reason."""

    shortest_instruction: int = Field(default=1, ge=1, le=10000)
    """Characters of an instruction at least."""
    longest_instruction: int = Field(default=4000, ge=1, le=1000000)
    """Characters of an instruction at most."""
    longest_input: int = Field(default=16000, ge=0, le=1000000)
    """Characters of an input at most."""
    shortest_output: int = Field(default=1, ge=1, le=10000)
    """Characters of an output at least."""
    longest_output: int = Field(default=16000, ge=1, le=1000000)
    """Characters of an output at most."""
    language_percent: int = Field(default=30, ge=0, le=100)
    """How much of a record has to be written in the script of spec.language, in percent of its words (two characters of
    Chinese or Japanese count as much as a word); code between ``` does not count. 0 accepts every language. Languages
    of the same script are not told apart."""
    minhash_percent: int = Field(default=85, ge=50, le=100)
    """A record is dropped as a near duplicate where this share of all three-character pieces of it and an earlier one
    is in both (Jaccard similarity, found by MinHash); 100 drops only what is the same but for blanks and
    punctuation."""
    rouge_percent: int | None = Field(default=None, ge=30, le=100)
    """A record is dropped where ROUGE-L between its instruction and an earlier one is above this, as Self-Instruct
    does; 100 drops none. Unless set, 70 for generated records and 100 for given ones."""
    control_strings: Literal["Neutralise", "Drop", "Keep"] = "Neutralise"
    """What becomes of strings that mean something to a prompt template, such as <|im_start|>, </s>, [INST] or
    ### Response: at the beginning of a line. Neutralise writes their first character in full width, so that they are
    text; Drop leaves the record out."""
    drop_containing: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        default_factory=list, max_length=100
    )
    """Records whose output holds one of these are left out: what a model says of itself, for example."""


_SOMETHING = "set sources, generate or both"
_WEIGHTS = "set weight for all sources and for generate, or for none"
_ONE_PROCESS = "an InstructionSet is one process on a CPU: compute.nodes is 1, gpusPerNode 0 and processesPerNode 1"
_LENGTHS = "a shortest length cannot be above the longest"


class InstructionSetSpec(RunPolicy):
    """Where records come from, and which of them stay."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("has(self.generate) || (has(self.sources) && size(self.sources) > 0)", _SOMETHING),
            (
                "(!has(self.sources) || self.sources.all(s, has(s.weight))) &&"
                " (!has(self.generate) || has(self.generate.weight)) ||"
                " (!has(self.sources) || !self.sources.exists(s, has(s.weight))) &&"
                " (!has(self.generate) || !has(self.generate.weight))",
                _WEIGHTS,
            ),
            (
                "self.compute.nodes == 1 && self.compute.gpusPerNode == 0"
                " && (!has(self.compute.processesPerNode) || self.compute.processesPerNode == 1)",
                _ONE_PROCESS,
            ),
            (
                "self.clean.shortestInstruction <= self.clean.longestInstruction"
                " && self.clean.shortestOutput <= self.clean.longestOutput",
                _LENGTHS,
            ),
        )
    )

    language: Language = "zh"
    """The language the records are to be in."""
    sources: list[InstructionSource] = Field(default_factory=list, max_length=16)
    """Records that are given; they are cleaned and converted, in this order."""
    generate: Generation | None = None
    """Asks a model for new records."""
    clean: Cleaning = Field(default_factory=Cleaning)
    """What a record has to be to stay."""
    max_records: int | None = Field(default=None, ge=1, le=100000000)
    """Records of the whole set at most, drawn by the seed where there are more; all unless set."""
    held_out_fraction: float = Field(default=0.0, ge=0, le=0.5)
    """The share of the records that are put aside for evaluation, chosen by a hash of instruction and input: they are
    in the artifact's directory `heldout`, and an SFTJob that names the set reads `train`."""
    seed: int = Field(default=42, ge=0, le=4294967295)
    """The seed of what is asked, and of what is drawn."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.generate is None and not self.sources:
            raise ValueError(_SOMETHING)
        weights = [source.weight for source in self.sources]
        weights += [self.generate.weight] if self.generate is not None else []
        if None in weights and any(weights):
            raise ValueError(_WEIGHTS)
        if self.compute.nodes != 1 or self.compute.gpus_per_node != 0 or self.compute.processes != 1:
            raise ValueError(_ONE_PROCESS)
        clean = self.clean
        if clean.shortest_instruction > clean.longest_instruction or clean.shortest_output > clean.longest_output:
            raise ValueError(_LENGTHS)
        return self


class InstructionSet(Resource):
    """Makes instruction records: cleans and converts given ones, or asks a model for new ones."""

    KIND: ClassVar[str] = "InstructionSet"
    kind: Literal["InstructionSet"] = "InstructionSet"
    spec: InstructionSetSpec
    status: Status | None = None
