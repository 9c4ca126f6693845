"""What an Evaluation measures: each task is one of five kinds, and each kind has its metrics."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from herdsman.api.meta import DNS_LABEL, ApiModel
from herdsman.api.v1alpha1.datasets import DatasetSource
from herdsman.api.v1alpha1.remote_sources import HTTP_URL
from herdsman.api.v1alpha1.schema import cel
from herdsman.api.v1alpha1.secrets import SecretKeyRef
from herdsman.api.v1alpha1.sources import DatasetRef

MAX_LABEL = 20
"""Task, model and metric together make the name of a figure, which has 64 characters."""
Label = Annotated[str, Field(pattern=DNS_LABEL, min_length=1, max_length=MAX_LABEL)]
SubjectName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", min_length=1, max_length=80)]
PromptText = Annotated[str, Field(min_length=1, max_length=4000)]

QuestionFormat = Literal["CEval", "CMMLU", "MMLU"]
PromptGeneration = Literal["chinese-llama-v1", "chinese-llama-v2", "llama-3-chinese-v3"]
Scoring = Literal["Constrained", "FirstToken", "LogLikelihood"]
MetricName = Literal[
    "perplexity",
    "perplexityPerCharacter",
    "bitsPerByte",
    "tokensPerCharacter",
    "accuracy",
    "accuracyOverSubjects",
    "stopped",
    "score",
    "winRate",
]

METRICS: Mapping[str, tuple[MetricName, ...]] = {
    "perplexity": ("perplexity", "perplexityPerCharacter", "bitsPerByte"),
    "tokens_per_character": ("tokensPerCharacter",),
    "multiple_choice": ("accuracy", "accuracyOverSubjects"),
    "samples": ("stopped",),
    "judge": ("score", "winRate"),
}
"""What each kind of task measures, by its member of Task; the telling one first."""


class Perplexity(ApiModel):
    """How well each model predicts text it has not seen: loss per token, and per character and byte, which is
    comparable between tokenizers."""

    dataset: DatasetSource
    """Text files (*.txt, or *.jsonl with a key "text")."""
    separator: Literal["Line", "BlankLine"] = "Line"
    """What ends a document of a text file: every line, or a blank line."""
    held_out_fraction: float | None = Field(default=None, gt=0, le=0.5)
    """Only the documents that a training on the same dataset with this recipe.heldOutFraction did not learn from; all
    of them unless set."""
    max_documents: int | None = Field(default=None, ge=1, le=10000000)
    """Documents at most, from the beginning."""
    context_tokens: int = Field(default=512, ge=8, le=131072)
    """Tokens a prediction is made from at most; never more than the model takes."""


class TokensPerCharacter(ApiModel):
    """How many tokens each model's tokenizer spends on a character of text."""

    dataset: DatasetSource
    """Text files (*.txt, or *.jsonl with a key "text")."""
    separator: Literal["Line", "BlankLine"] = "Line"
    """What ends a document of a text file: every line, or a blank line."""
    max_documents: int | None = Field(default=None, ge=1, le=10000000)
    """Documents at most, from the beginning."""


_MMLU_PROMPT = "format MMLU has one prompt of its own: leave prompt and withTemplate out"


class MultipleChoice(ApiModel):
    """Questions with the answers A, B, C and D, as C-Eval, CMMLU and MMLU publish them."""

    model_config = ConfigDict(
        json_schema_extra=cel(("self.format != 'MMLU' || (!has(self.prompt) && !self.withTemplate)", _MMLU_PROMPT))
    )

    dataset: DatasetSource
    """The directory with the folders `dev` and `val` or `test`, each with one CSV file a subject; or the archive they
    are published in (*.zip, *.tar, *.tar.gz)."""
    format: QuestionFormat = "CEval"
    """Whose files they are: CEval (val/SUBJECT_val.csv), CMMLU (test/SUBJECT.csv) or MMLU (test/SUBJECT_test.csv,
    without a header)."""
    split: Literal["Validation", "Test"] | None = None
    """Which folder is asked; unless set, Validation of C-Eval, whose test has no answers, and Test of the others."""
    subjects: list[SubjectName] = Field(default_factory=list, max_length=100)
    """Only these subjects, by the names of their files; all there are unless set."""
    max_questions: int | None = Field(default=None, ge=1, le=100000)
    """Questions of each subject at most, from the beginning."""
    few_shot: int = Field(default=5, ge=0, le=5)
    """Questions of `dev` that are shown with their answers before each question."""
    prompt: PromptGeneration | None = None
    """Whose wording of questions in Chinese: that of the first generation unless set."""
    with_template: bool = False
    """Whether questions are put as instructions, in the prompt template of that generation: for tuned models."""
    scoring: Scoring | None = None
    """How an answer is read off the model. Constrained, as published for C-Eval and CMMLU: one step of generation with
    temperature 0.2 and repetition penalty 1.1, in which the scores of `A` as a word and of `A` behind a colon are
    added. FirstToken, as published for MMLU: the letter with the highest score. LogLikelihood, as
    lm-evaluation-harness has it: the letter that continues the text most probably. Unless set, what was published for
    the format."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.format == "MMLU" and (self.prompt is not None or self.with_template):
            raise ValueError(_MMLU_PROMPT)
        return self


_PROMPTS = "set prompts or dataset, and not both"


class Samples(ApiModel):
    """Answers of all models to the same prompts, side by side; the most probable token each time, so that they are the
    same every time."""

    model_config = ConfigDict(
        json_schema_extra=cel(("has(self.dataset) != (has(self.prompts) && size(self.prompts) > 0)", _PROMPTS))
    )

    prompts: list[PromptText] = Field(default_factory=list, max_length=50)
    """What is asked."""
    dataset: DatasetRef | None = None
    """Files with what is asked: *.txt, one prompt a line, or *.json and *.jsonl with a key "instruction"."""
    max_prompts: int = Field(default=50, ge=1, le=1000)
    """Prompts at most, from the beginning."""
    max_tokens: int = Field(default=200, ge=1, le=4096)
    """Tokens of an answer at most: a model that never stops is cut off there, and the metric `stopped` tells it."""
    repetition_penalty_percent: int = Field(default=110, ge=100, le=200)
    """By how much tokens that are there already are made less probable; 100 not at all, 110 as published."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if (self.dataset is not None) == bool(self.prompts):
            raise ValueError(_PROMPTS)
        return self


class JudgeEndpoint(ApiModel):
    """A model behind an API that speaks OpenAI's chat completions."""

    url: str = Field(pattern=HTTP_URL, max_length=400)
    """The API's base, such as https://api.example.com/v1."""
    model: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$", max_length=200)
    """The model that judges."""
    api_key: SecretKeyRef | None = None
    """The key, sent as `Authorization: Bearer KEY`; none for an API that needs none. With `herdsman run` the
    environment variable HERDSMAN_JUDGE_API_KEY is taken instead."""
    parallel: int = Field(default=4, ge=1, le=64)
    """Requests under way at once."""
    timeout_seconds: int = Field(default=120, ge=1, le=3600)
    """Seconds an answer may take before it is asked for again."""


class Judge(ApiModel):
    """Answers judged by another model, with 0 to 10 points each.

    Each model's answer is shown beside that of the first model, and a second time in the other order, because judges
    prefer what they read first; a score is the mean of both. A single model's answers are judged alone.
    """

    questions: DatasetRef
    """Files with what is asked: *.txt, one question a line, or *.json and *.jsonl with a key "instruction"; a key
    "output" is shown to the judge as a reference."""
    max_questions: int = Field(default=200, ge=1, le=10000)
    """Questions at most, from the beginning."""
    max_tokens: int = Field(default=400, ge=1, le=4096)
    """Tokens of an answer at most."""
    repetition_penalty_percent: int = Field(default=110, ge=100, le=200)
    """By how much tokens that are there already are made less probable; 100 not at all, 110 as published."""
    criteria: str | None = Field(default=None, min_length=1, max_length=2000)
    """What the judge is told to look at; helpfulness, relevance, accuracy and level of detail unless set."""
    endpoint: JudgeEndpoint
    """Who judges."""


_MEMBERS = ("perplexity", "tokensPerCharacter", "multipleChoice", "samples", "judge")
_ONE = f"set exactly one of {', '.join(_MEMBERS)}"


class Task(ApiModel):
    """One thing that is measured of all models."""

    model_config = ConfigDict(
        json_schema_extra=cel((" + ".join(f"(has(self.{name}) ? 1 : 0)" for name in _MEMBERS) + " == 1", _ONE))
    )

    name: Label
    """What it is called in the report and in thresholds."""
    perplexity: Perplexity | None = None
    """Perplexity on text. Metrics: perplexity (per token), perplexityPerCharacter, bitsPerByte."""
    tokens_per_character: TokensPerCharacter | None = None
    """How the tokenizers spell text. Metric: tokensPerCharacter."""
    multiple_choice: MultipleChoice | None = None
    """Questions with four answers. Metrics: accuracy (0 to 1), accuracyOverSubjects (the mean of the subjects')."""
    samples: Samples | None = None
    """Answers side by side. Metric: stopped, the share of answers that ended before maxTokens."""
    judge: Judge | None = None
    """Answers judged by another model. Metrics: score (0 to 10), winRate (the share of questions answered better than
    by the first model, ties counting half)."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if len([name for name in METRICS if getattr(self, name) is not None]) != 1:
            raise ValueError(_ONE)
        return self

    @property
    def kind(self) -> str:
        """The member that is set: perplexity, multiple_choice, ..."""
        return next(name for name in METRICS if getattr(self, name) is not None)

    @property
    def metrics(self) -> tuple[MetricName, ...]:
        """What it measures, the telling one first."""
        return METRICS[self.kind]
