"""Recipes: how a model is trained, and the published presets that fill what a manifest leaves out."""

from typing import Annotated, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, model_validator

from herdsman.api.meta import MAX_COUNT, ApiModel
from herdsman.api.v1alpha1.divergence import Divergence
from herdsman.api.v1alpha1.samples import Samples
from herdsman.api.v1alpha1.schema import cel

Preset = Literal["chinese-llama-v1", "chinese-llama-v2", "llama-3-chinese-v3"]
Stage = Literal["EmbeddingsOnly", "LoRA", "Full"]
Recompute = Literal["None", "Selective", "Full"]
BaseFormat = Literal["Native", "Int8", "NF4", "FP8"]
Precision = Literal["float32", "bf16", "fp16"]
Template = Literal["alpaca", "llama-2", "llama-3", "chatml"]
ModuleName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*$", max_length=64)]
LearningRate = Annotated[float, Field(gt=0, le=1)]

PROJECTIONS = ["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]
"""The seven linear layers of a Llama block."""


class Lora(ApiModel):
    """Low-rank adaptation."""

    rank: int | None = Field(default=None, ge=1, le=1024)
    """Rank r of the update B·A."""
    alpha: int | None = Field(default=None, ge=1, le=4096)
    """The update is scaled by alpha / rank."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout before A, during training."""
    targets: list[ModuleName] | None = Field(default=None, min_length=1, max_length=16)
    """The linear layers that get an update."""
    train_fully: list[Literal["embed_tokens", "lm_head"]] | None = Field(default=None, max_length=2)
    """Matrices trained in full beside it: embed_tokens, lm_head or none of them."""


class Batch(ApiModel):
    """The batch as the mathematics sees it; how it is cut follows from the processes."""

    global_sequences: int | None = Field(default=None, ge=1, le=65536)
    """Sequences per optimizer step, over all processes."""
    micro_sequences: int | None = Field(default=None, ge=1, le=1024)
    """Sequences a process computes at once; chosen by Herdsman unless set. It changes memory, not the result."""


class Schedule(ApiModel):
    """The learning rate over the steps."""

    kind: Literal["cosine", "linear", "constant"] | None = None
    """The shape after the warm-up; cosine and linear end at zero."""
    warmup_ratio: float | None = Field(default=None, ge=0, le=1)
    """The share of the steps in which the rate rises linearly from zero."""


class DeepSpeed(ApiModel):
    """Sharding of the optimizer's state, the gradients and the weights over the processes."""

    zero_stage: int = Field(default=2, ge=0, le=3)
    """0 trains without DeepSpeed; 1 shards the optimizer's state, 2 also gradients, 3 also weights."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What is kept in the host's memory."""


class Fsdp(ApiModel):
    """PyTorch's own sharding of weights, gradients and the optimizer's state over the processes (FSDP2)."""

    reshard_after_forward: bool = True
    """Whether a layer gives its weights up after its forward pass and fetches them again for the backward pass, which
    saves memory; else they are fetched once a micro-batch, and a GPU holds all of them for that long."""


class Checkpoints(ApiModel):
    """How often the state is saved and how much of it is kept."""

    every_steps: int | None = Field(default=None, ge=1, le=1000000)
    """Optimizer steps between checkpoints; at most this much work is lost."""
    keep_last: int | None = Field(default=None, ge=1, le=100)
    """Checkpoints kept; an older one goes only after a newer one was verified."""
    keep_best: int = Field(default=0, ge=0, le=100)
    """Checkpoints with the least held-out loss that are kept beside them; a step that evaluates among the best is
    saved. Needs evaluateEverySteps."""
    publish: Literal["Last", "Best"] = "Last"
    """Whose weights become the artifact: those of the last step, or of the evaluated step with the least held-out loss.
    Best keeps that checkpoint, and needs evaluateEverySteps."""
    background: bool | None = None
    """Whether the training goes on while a checkpoint is written, from a copy in the memory of rank 0's host, 12 bytes
    a trained parameter; unless set, where that memory is free."""

    @property
    def best(self) -> int:
        """Checkpoints with the least held-out loss to keep."""
        return max(self.keep_best, 1 if self.publish == "Best" else 0)


_BEST = "checkpoints.keepBest and publish: Best compare evaluations: set evaluateEverySteps"
_BEST_RULE = (
    "has(self.evaluateEverySteps) || !has(self.checkpoints) || "
    "((!has(self.checkpoints.keepBest) || self.checkpoints.keepBest == 0) && "
    "(!has(self.checkpoints.publish) || self.checkpoints.publish == 'Last'))"
)


_FSDP = "fsdp and deepspeed both spread the training over the processes: set one of them"
_FSDP_RULE = "!has(self.fsdp) || !has(self.deepspeed) || self.deepspeed.zeroStage == 0"
_WHOLE = "fsdp shards weights as they are: leave baseFormat at Native, or train without fsdp"
_WHOLE_RULE = "!has(self.fsdp) || !has(self.baseFormat) || self.baseFormat == 'Native'"
_RULES = ((_BEST_RULE, _BEST), (_FSDP_RULE, _FSDP), (_WHOLE_RULE, _WHOLE))


class TrainingRecipe(ApiModel):
    """What pre-training and instruction tuning share."""

    model_config = ConfigDict(json_schema_extra=cel(*_RULES))

    preset: Preset = "chinese-llama-v1"
    """The published recipe whose values fill every field that is not set here."""
    lora: Lora = Field(default_factory=Lora)
    """Low-rank adaptation; not used by the stages EmbeddingsOnly and Full, but for trainFully."""
    batch: Batch = Field(default_factory=Batch)
    """The global batch."""
    learning_rate: LearningRate | None = None
    """The peak learning rate."""
    schedule: Schedule = Field(default_factory=Schedule)
    """The learning rate over the steps."""
    weight_decay: float | None = Field(default=None, ge=0, le=1)
    """AdamW's decoupled weight decay; not applied to biases and norms."""
    max_grad_norm: float | None = Field(default=None, gt=0, le=1000)
    """The gradient's norm is clipped to this."""
    epochs: int | None = Field(default=None, ge=1, le=1000)
    """Passes over the data; of a mixture, as many sequences as all its datasets have, each dataset with its share."""
    max_steps: int | None = Field(default=None, ge=1, le=100000000)
    """Optimizer steps, instead of epochs."""
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Tokens to train on, instead of epochs: the fewest steps that take so many, prompts included and padding not."""
    precision: Precision | None = None
    """The type of the matrix products; trained weights and optimizer stay in float32."""
    base_format: BaseFormat = "Native"
    """How the frozen weights are kept: Native in 16 bits (or float32), Int8 and NF4 (4 bits, double quantisation) to
    save memory; FP8 also multiplies in fp8, which is faster on GPUs that can, and less exact. Not for stage Full."""
    recompute: Recompute | None = None
    """What is computed again in the backward pass to save memory: Full is gradient checkpointing, about a third slower;
    Selective gate and up alone, a seventh slower. The least that the memory allows, unless set."""
    deepspeed: DeepSpeed | None = None
    """DeepSpeed's ZeRO; the preset's stage on GPUs and none on the CPU or with fsdp, unless set."""
    fsdp: Fsdp | None = None
    """Sharding by PyTorch itself, instead of DeepSpeed: for a base that one GPU cannot hold. Not with fp16."""
    checkpoints: Checkpoints = Field(default_factory=Checkpoints)
    """Saving."""
    evaluate_every_steps: int | None = Field(default=None, ge=1, le=1000000)
    """Steps between evaluations on the held-out part; only before and after the run unless set."""
    held_out_fraction: float | None = Field(default=None, ge=0, le=0.5)
    """The share of the documents or records kept for evaluation; chosen by a hash of their text."""
    duplicates: Literal["Keep", "Drop"] = "Keep"
    """What happens to a document, or a record, that was met before in any of the datasets, the same to the letter but
    for white space around it. Duplicates are counted in any case."""
    new_rows: Literal["Mean", "Normal"] = "Mean"
    """How rows of a grown vocabulary start: Mean of the rows of the old pieces that spell it, or Normal(0, 0.02)."""
    divergence: Divergence = Field(default_factory=Divergence)
    """What happens when loss or gradient are not finite, or the loss runs away."""
    samples: Samples = Field(default_factory=Samples)
    """What the model is given to write for the report, before and after."""
    seed: int = Field(default=42, ge=0, le=4294967295)
    """The seed of order, dropout and initialisation."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.checkpoints.best and self.evaluate_every_steps is None:
            raise ValueError(_BEST)
        if self.fsdp is not None and self.deepspeed is not None and self.deepspeed.zero_stage > 0:
            raise ValueError(_FSDP)
        if self.fsdp is not None and self.base_format != "Native":
            raise ValueError(_WHOLE)
        return self


_DOCUMENTS = "attendWithin Document needs addBos: nothing predicts the first token of a document"
_DOCUMENTS_RULE = (
    "!has(self.attendWithin) || self.attendWithin != 'Document' || !has(self.addBos) || self.addBos == true"
)


class PretrainRecipe(TrainingRecipe):
    """Continued pre-training."""

    model_config = ConfigDict(json_schema_extra=cel(*_RULES, (_DOCUMENTS_RULE, _DOCUMENTS)))

    block_size: int | None = Field(default=None, ge=8, le=131072)
    """Tokens of one sequence."""
    separator: Literal["Line", "BlankLine"] = "Line"
    """What ends a document of a text file: every line, or a blank line."""
    add_bos: bool | None = None
    """Whether a document starts with BOS."""
    add_eos: bool | None = None
    """Whether a document ends with EOS; models pre-trained without it do not stop."""
    attend_within: Literal["Block", "Document"] = "Block"
    """What a token sees: all before it in its block, as the recipe was published, or only its own document, whose
    positions begin at 0 then. Document needs addBos: nothing predicts the first token of a document."""

    @model_validator(mode="after")
    def _documents_begin(self) -> Self:
        if self.attend_within == "Document" and self.add_bos is False:
            raise ValueError(_DOCUMENTS)
        return self


class SFTRecipe(TrainingRecipe):
    """Instruction tuning."""

    template: Template | None = None
    """The prompt template."""
    system_prompt: str | None = Field(default=None, max_length=4096)
    """The system prompt, for templates that have one; the template's own unless set."""
    max_length: int | None = Field(default=None, ge=8, le=131072)
    """Tokens of a sample at most."""
    overlong: Literal["Truncate", "Drop", "Fail"] = "Truncate"
    """What happens to a longer sample; samples left without a target are dropped and counted in any case."""


_CHECKPOINTS = Checkpoints(every_steps=200, keep_last=3)


def _lora(rank: int, alpha: int) -> Lora:
    return Lora(rank=rank, alpha=alpha, dropout=0.05, targets=PROJECTIONS, train_fully=["embed_tokens", "lm_head"])


def _pretrain(
    preset: Preset, lora: Lora, *, learning_rate: float, block_size: int, add_eos: bool, half: Literal["bf16", "fp16"]
) -> PretrainRecipe:
    return PretrainRecipe(
        preset=preset,
        lora=lora,
        batch=Batch(global_sequences=1024),
        learning_rate=learning_rate,
        schedule=Schedule(kind="cosine", warmup_ratio=0.05),
        weight_decay=0.01,
        max_grad_norm=1.0,
        epochs=1,
        precision=half,
        deepspeed=DeepSpeed(zero_stage=2 if half == "fp16" else 0),
        checkpoints=_CHECKPOINTS,
        held_out_fraction=0.001,
        block_size=block_size,
        add_bos=True,
        add_eos=add_eos,
    )


def _sft(preset: Preset, lora: Lora, *, template: Template, epochs: int, half: Literal["bf16", "fp16"]) -> SFTRecipe:
    return SFTRecipe(
        preset=preset,
        lora=lora,
        batch=Batch(global_sequences=512),
        learning_rate=1e-4,
        schedule=Schedule(kind="cosine", warmup_ratio=0.03),
        weight_decay=0.0,
        max_grad_norm=1.0,
        epochs=epochs,
        precision=half,
        deepspeed=DeepSpeed(zero_stage=2 if half == "fp16" else 0),
        checkpoints=_CHECKPOINTS,
        held_out_fraction=0.001,
        template=template,
        max_length=512,
    )


_V1, _V2 = _lora(8, 32), _lora(64, 128)

PRETRAIN_PRESETS: dict[str, PretrainRecipe] = {
    recipe.preset: recipe
    for recipe in (
        _pretrain("chinese-llama-v1", _V1, learning_rate=2e-4, block_size=512, add_eos=False, half="fp16"),
        _pretrain("chinese-llama-v2", _V2, learning_rate=2e-4, block_size=512, add_eos=True, half="fp16"),
        _pretrain("llama-3-chinese-v3", _V2, learning_rate=1e-4, block_size=1024, add_eos=True, half="bf16"),
    )
}
"""The published launcher values of continued pre-training, by generation; the batch is that of the first report."""

SFT_PRESETS: dict[str, SFTRecipe] = {
    recipe.preset: recipe
    for recipe in (
        _sft("chinese-llama-v1", _V1, template="alpaca", epochs=1, half="fp16"),
        _sft("chinese-llama-v2", _V2, template="llama-2", epochs=1, half="fp16"),
        _sft("llama-3-chinese-v3", _V2, template="llama-3", epochs=3, half="bf16"),
    )
}
"""The published launcher values of instruction tuning, by generation; the batch is that of the first report."""

LENGTH_RULE = (
    "(has(self.recipe.epochs) ? 1 : 0) + (has(self.recipe.maxSteps) ? 1 : 0)"
    " + (has(self.recipe.maxTokens) ? 1 : 0) <= 1",
    "set at most one of recipe.epochs, recipe.maxSteps and recipe.maxTokens",
)
"""For a spec with a recipe, in CEL; its twin is `length_problem`."""


def length_problem(recipe: TrainingRecipe) -> str | None:
    """Return that the length of the training is given twice, or None."""
    given = [recipe.epochs, recipe.max_steps, recipe.max_tokens]
    return LENGTH_RULE[1] if sum(each is not None for each in given) > 1 else None


R = TypeVar("R", bound=ApiModel)


def _fill(given: R, preset: R) -> R:
    """Return `given` with every unset (None) field taken from `preset`, member by member in nested models."""
    update = {}
    for name in type(given).model_fields:
        mine, theirs = getattr(given, name), getattr(preset, name)
        if mine is None:
            update[name] = theirs
        elif isinstance(mine, ApiModel) and isinstance(theirs, type(mine)):
            update[name] = _fill(mine, theirs)
    return given.model_copy(update=update)


def resolve_pretrain(recipe: PretrainRecipe, stage: Stage) -> PretrainRecipe:
    """Return the recipe with its preset's values filled in; maxSteps or maxTokens replace epochs, fsdp deepspeed.

    Stage EmbeddingsOnly trains embed_tokens alone, as the published figure of 2.97 % trainable parameters tells.
    """
    full = _fill(recipe, PRETRAIN_PRESETS[recipe.preset])
    if stage == "EmbeddingsOnly" and recipe.lora.train_fully is None:
        full = full.model_copy(update={"lora": full.lora.model_copy(update={"train_fully": ["embed_tokens"]})})
    return _without_what_is_replaced(full, recipe)


def resolve_sft(recipe: SFTRecipe) -> SFTRecipe:
    """Return the recipe with its preset's values filled in; maxSteps or maxTokens replace epochs, fsdp deepspeed."""
    return _without_what_is_replaced(_fill(recipe, SFT_PRESETS[recipe.preset]), recipe)


T = TypeVar("T", bound=TrainingRecipe)


def _without_what_is_replaced(full: T, given: T) -> T:
    """Leave out what the preset says and the manifest says by another field."""
    replaced: dict[str, None] = {}
    if given.max_steps is not None or given.max_tokens is not None:
        replaced["epochs"] = None
    if given.fsdp is not None and given.deepspeed is None:
        replaced["deepspeed"] = None
    return full.model_copy(update=replaced)
