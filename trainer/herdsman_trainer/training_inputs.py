"""The checked inputs of a training run, and the model put together from them."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from herdsman.api.job_config import PretrainConfig, SFTConfig
from herdsman.api.v1alpha1.recipes import PretrainRecipe, Stage
from herdsman_trainer.artifacts import OnBytes, model_digest, open_input, read_manifest
from herdsman_trainer.embeddings import Vocabulary, check_extends, grown_rows, tokenizer_of
from herdsman_trainer.errors import BadInput
from herdsman_trainer.lora import TrainedModel, full_names, train_embeddings, train_everything, train_lora
from herdsman_trainer.models import (
    compute_dtype,
    is_tied,
    load_model,
    load_shapes,
    read_matrix,
    set_matrix,
)
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.tokenizers import TextTokenizer, load_tokenizer
from herdsman_trainer.weights.adapters import Adapter, load_adapter
from herdsman_trainer.weights.lineage import Origin, check_lineage
from herdsman_trainer.weights.merge import EMBEDDING, HEAD, merge
from herdsman_trainer.weights.reading import open_model_weights

TrainingJob = PretrainConfig | SFTConfig
GIB = 1 << 30


@dataclass(frozen=True)
class TrainingInputs:
    """Where the inputs lie, after their checks, and the digests the artifact records."""

    model: Path
    adapter: Path | None
    tokenizer: Path
    """The directory whose tokenizer is used: spec.tokenizer's, else the adapter's, else the model's."""
    base_digest: str
    """The digest of the model."""
    digests: dict[str, str]
    """Digests of what the artifact is made from, by field of the spec."""

    @property
    def base_tokenizer(self) -> TextTokenizer | None:
        """The model's own tokenizer, where it has one."""
        return tokenizer_of(self.model)


def stage_of(config: TrainingJob) -> Stage:
    """Return the stage; instruction tuning is always LoRA."""
    return config.stage if isinstance(config, PretrainConfig) else "LoRA"


def open_training_inputs(config: TrainingJob, on_bytes: OnBytes = lambda _: None) -> TrainingInputs:
    """Check every input and return where it lies; reads the whole model once if it has no manifest.

    `on_bytes` hears how much of the inputs was read and may raise to stop. BadInput, naming the field, for what is
    missing, lies outside its volume, or is not what the run was planned with, and for an adapter that was trained on
    another model.
    """
    depth = config.verify_inputs
    model = open_input(config.model, depth, on_bytes)
    adapter = open_input(config.adapter, depth, on_bytes) if config.adapter else None
    base_digest = model_digest(model, on_bytes)
    digests = {config.model.field: base_digest}
    if adapter is not None and config.adapter is not None:
        manifest = read_manifest(adapter)
        if manifest is not None:
            artifact = manifest.artifact
            origin = Origin(str(adapter), artifact.digest, artifact.base_digest, tuple(artifact.parents))
            check_lineage(str(model), base_digest if read_manifest(model) else None, [origin])
            digests[config.adapter.field] = artifact.digest
    if config.tokenizer is not None:
        tokenizer = open_input(config.tokenizer, depth, on_bytes)
    else:
        tokenizer = adapter if adapter is not None and tokenizer_of(adapter) is not None else model
    digests["spec.tokenizer"] = load_tokenizer(tokenizer).digest
    return TrainingInputs(model, adapter, tokenizer, base_digest, digests)


def assemble(
    config: TrainingJob,
    inputs: TrainingInputs,
    tokenizer: TextTokenizer,
    device: torch.device,
    on_base: Callable[[LlamaForCausalLM], None] = lambda _: None,
) -> TrainedModel:
    """Load the model, apply the adapter, grow the vocabulary, and decide what is trained.

    `on_base` sees the unmodified model, on its device, before anything is changed. Matrices that are trained or stored
    in the adapter are read in float32 from the files. On the device `meta` only headers are read: the same checks, and
    a model of all the shapes without values. BadInput (ArtifactMismatch) where tokenizer, adapter and model do not fit
    together.
    """
    stage, recipe, shapes_only = stage_of(config), config.recipe, device.type == "meta"
    dtype = torch.float32 if stage == "Full" else compute_dtype(recipe.precision or "float32", device.type)
    model = load_shapes(inputs.model, dtype) if shapes_only else load_model(inputs.model, dtype)
    tied = is_tied(model)
    adapter = _fitting_adapter(inputs, stage, tied=tied)
    vocabulary = Vocabulary(str(inputs.model), model.config.vocab_size, inputs.base_tokenizer)
    if adapter is not None and adapter.embedding_rows is not None:
        own = tokenizer_of(adapter.directory)
        same = adapter.embedding_rows == vocabulary.rows
        vocabulary = Vocabulary(
            str(adapter.directory), adapter.embedding_rows, own or (vocabulary.tokenizer if same else None)
        )
    check_extends(vocabulary, tokenizer, str(inputs.tokenizer))
    model = model.to(device)
    on_base(model)

    whole = {}
    if adapter is not None:
        for name, spec in adapter.full.items():
            whole[name] = _shape(spec.shape) if shapes_only else adapter.read(spec.name).to(torch.float32)
    full = [] if stage == "Full" else full_names(recipe.lora, stage, tied=tied)
    grows = tokenizer.vocab_size > vocabulary.rows
    both = [EMBEDDING] if tied else [EMBEDDING, HEAD]
    for name in dict.fromkeys([*(both if grows else ()), *full]):
        if name not in whole:
            whole[name] = _shape(model.get_parameter(name).shape) if shapes_only else read_matrix(inputs.model, name)
        if grows:
            whole[name] = grown_rows(whole[name], vocabulary, tokenizer, recipe.new_rows, recipe.seed, salt=name)
    for name, weight in whole.items():
        set_matrix(model, name, weight)

    if stage == "Full":
        return train_everything(model)
    if stage == "EmbeddingsOnly":
        return train_embeddings(model, full, whole)
    with device if shapes_only else nullcontext():
        return train_lora(model, recipe.lora, full, whole, seed=recipe.seed, continued=adapter)


def heard_by(context: RunContext) -> OnBytes:
    """Return what tells the context how much of the inputs was read, and stops the reading when asked to."""
    total = 0

    def on_bytes(count: int) -> None:
        nonlocal total
        context.raise_if_stopped()
        total += count
        if total // GIB > (total - count) // GIB:
            context.report(activity=f"checking the inputs, {total // GIB} GiB read")

    return on_bytes


def sequence_length(config: TrainingJob) -> int:
    """Return the tokens of a sequence, at most."""
    recipe = config.recipe
    return (recipe.block_size if isinstance(recipe, PretrainRecipe) else recipe.max_length) or 512


def _shape(shape: Sequence[int]) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=torch.float32, device="meta")


def _fitting_adapter(inputs: TrainingInputs, stage: Stage, *, tied: bool) -> Adapter | None:
    """Open the adapter and check its shapes against the model's; None where there is none."""
    if inputs.adapter is None:
        return None
    adapter = load_adapter(inputs.adapter)
    where = str(inputs.adapter)
    merge_first = "Merge the adapter with a LoRAMerge and train the merged model."
    if stage == "Full":
        raise BadInput("Stage Full trains all weights and takes no adapter.", file=where, hint=merge_first)
    if stage == "EmbeddingsOnly" and adapter.lora:
        message = "Stage EmbeddingsOnly has no LoRA and the adapter to go on from has one, which would be lost."
        raise BadInput(message, file=where, hint=f"Use stage LoRA. {merge_first}")
    with open_model_weights(inputs.model) as weights:
        planned = merge(weights, [adapter], tied=tied)
        if tied and not planned.plan.tied:
            message = "The adapter holds a head of its own and the model ties its head to the embedding."
            raise BadInput(message, reason="ArtifactMismatch", file=where, hint=merge_first)
        return planned.adapters[0]
