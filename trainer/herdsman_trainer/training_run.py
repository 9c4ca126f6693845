"""What pre-training and instruction tuning share: from checked inputs and data to a published artifact."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from transformers import LlamaForCausalLM

from herdsman.api.v1alpha1.recipes import DeepSpeed
from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.batches import TrainingStream
from herdsman_trainer.checkpoints import Checkpoint, CheckpointStore, Identity
from herdsman_trainer.deepspeed_engine import DeepSpeedEngine
from herdsman_trainer.distributed import Processes
from herdsman_trainer.engines import Engine, PlainEngine, evaluation_nll
from herdsman_trainer.evaluation import HeldOut, evaluate
from herdsman_trainer.lora import TrainedModel
from herdsman_trainer.mixture import Mixture
from herdsman_trainer.models import compute_dtype, parameter_counts, use_gradient_checkpointing
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.sequence_order import GlobalBatch, largest_micro_batch
from herdsman_trainer.step_budget import TrainingSequences, planned_steps
from herdsman_trainer.tokenizers import TextTokenizer
from herdsman_trainer.trained_artifact import publish_trained
from herdsman_trainer.training import State, Trainer
from herdsman_trainer.training_inputs import TrainingInputs, TrainingJob, assemble, stage_of

CPU_MICRO_SEQUENCES = 8
GPU_MICRO_TOKENS = 4096
"""Tokens a process computes at once unless recipe.batch.microSequences says otherwise."""
NOT_MATHEMATICS = {"checkpoints", "evaluate_every_steps", "gradient_checkpointing", "deepspeed"}
"""Members of the recipe that may change between attempts: they decide how the result is reached and not what it is."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """What is trained and evaluated on."""

    train: TrainingSequences
    held_out: HeldOut | None
    key: str
    """A digest of the data as it is trained on."""
    length: int
    """Tokens of a sequence at most."""
    mixture: Mixture | None = None
    """The shares of several datasets; None where every sequence is as good as any other."""
    base_held_out: Callable[[TextTokenizer], HeldOut] | None = None
    """The held-out text in another tokenizer's tokens, to evaluate the unmodified model."""
    figures: dict[str, float | str] = field(default_factory=dict)
    """Counts for the artifact's report."""


def run_training(
    config: TrainingJob,
    context: RunContext,
    processes: Processes,
    inputs: TrainingInputs,
    tokenizer: TextTokenizer,
    data: TrainingData,
) -> Artifact:
    """Train from the newest checkpoint, or from the start, evaluate before and after, and publish.

    Every rank calls this and gets the artifact's contract.
    """
    recipe, device = config.recipe, processes.device
    batch = global_batch(config, processes, data.length)
    steps = planned_steps(recipe, data.train, batch.sequences, data.mixture)
    identity = Identity(recipe_digest(config, inputs, data), config.attempt)
    store = CheckpointStore(context.checkpoints_dir, processes, identity, recipe.checkpoints.keep_last or 1)
    checkpoint = store.newest()
    be_deterministic(device, checkpoint)

    state = State()
    evaluation = Evaluation(data, batch.micro_sequences, processes, context)
    done = checkpoint.manifest.step if checkpoint else 0
    context.report(activity="loading the model", step=done, total_steps=steps)
    model = assemble(
        config,
        inputs,
        tokenizer,
        device,
        on_base=lambda base: None if checkpoint else evaluation.of_base(base, config, inputs, tokenizer, state),
    )
    if recipe.gradient_checkpointing:
        use_gradient_checkpointing(model.base)
    counts = parameter_counts(model.module)
    engine = make_engine(config, model, processes, batch)
    if checkpoint is not None:
        _resume(engine, state, checkpoint, context)
    elif data.held_out is not None:
        state.notes |= evaluation.of_engine(engine, "_before")

    stream = TrainingStream(data.train, batch, recipe.seed, data.mixture)
    trainer = Trainer(
        engine,
        stream,
        recipe,
        steps,
        store=store,
        processes=processes,
        context=context,
        evaluate=(lambda: evaluation.of_engine(engine)) if data.held_out is not None else None,
    )
    trainer.train(state)
    after = evaluation.of_engine(engine, "_after") if data.held_out is not None else {}

    context.report(activity="writing the artifact")
    values = engine.values()
    figures = {"steps": steps, "trainable_parameters": counts[0], "parameters": counts[1], **data.figures}
    report = {**figures, **state.notes, **after}
    return processes.on_first(lambda: publish_trained(config, context, inputs, tokenizer, model, values, report))


class Evaluation:
    """Evaluates on the held-out part, and says so."""

    def __init__(self, data: TrainingData, micro_sequences: int, processes: Processes, context: RunContext) -> None:
        self._data = data
        self._micro_sequences = micro_sequences
        self._processes = processes
        self._context = context

    def of_engine(self, engine: Engine, suffix: str = "") -> dict[str, float]:
        """Return the figures of the model as it is trained now."""
        if self._data.held_out is None:
            return {}
        self._context.report(activity="evaluating on the held-out part")
        loss = evaluate(
            engine.token_nll, self._data.held_out, self._micro_sequences, self._processes, self._context.should_stop
        )
        return loss.figures(suffix)

    def of_base(
        self,
        base: LlamaForCausalLM,
        config: TrainingJob,
        inputs: TrainingInputs,
        tokenizer: TextTokenizer,
        state: State,
    ) -> None:
        """Note the figures of the unmodified model with its own tokenizer, where the vocabulary grows."""
        own = inputs.base_tokenizer
        grows = own is not None and own.vocab_size < tokenizer.vocab_size
        if own is None or not grows or self._data.base_held_out is None:
            return
        self._context.report(activity="evaluating the unmodified model")
        device = self._processes.device
        dtype = compute_dtype(config.recipe.precision or "float32", device.type)
        loss = evaluate(
            lambda batch: evaluation_nll(base, batch, device, dtype),
            self._data.base_held_out(own),
            self._micro_sequences,
            self._processes,
            self._context.should_stop,
        )
        state.notes |= loss.figures("_base")


def global_batch(config: TrainingJob, processes: Processes, length: int) -> GlobalBatch:
    """Return how the global batch is cut; BadInput, with numbers that would do, where it cannot be cut evenly.

    Unless recipe.batch.microSequences is set, a process computes the largest share up to 8 sequences on the CPU, and
    up to 4,096 tokens on a GPU.
    """
    batch, world = config.recipe.batch, processes.world_size
    sequences = batch.global_sequences or 1
    if batch.micro_sequences is not None:
        return GlobalBatch(sequences, batch.micro_sequences, world)
    most = CPU_MICRO_SEQUENCES if processes.device.type == "cpu" else max(1, GPU_MICRO_TOKENS // length)
    return GlobalBatch(sequences, largest_micro_batch(sequences, world, most), world)


def recipe_digest(config: TrainingJob, inputs: TrainingInputs, data: TrainingData) -> str:
    """Return the SHA-256 over everything that decides the trained weights."""
    recipe = config.recipe.model_dump(mode="json", exclude=NOT_MATHEMATICS)
    recipe["batch"].pop("micro_sequences")
    content = {
        "kind": config.kind,
        "stage": stage_of(config),
        "recipe": recipe,
        "inputs": inputs.digests,
        "data": data.key,
        **({"weights": data.mixture.weights} if data.mixture is not None else {}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def be_deterministic(device: torch.device, checkpoint: Checkpoint | None) -> None:
    """Make results repeatable bit by bit on the CPU, with the number of threads the checkpoint was made with."""
    if device.type != "cpu":
        return
    torch.use_deterministic_algorithms(True)
    # A help for debugging that costs time where large buffers are allocated.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if checkpoint is not None:
        torch.set_num_threads(checkpoint.manifest.threads)


def make_engine(config: TrainingJob, model: TrainedModel, processes: Processes, batch: GlobalBatch) -> Engine:
    """Return DeepSpeed's engine where the recipe asks for ZeRO and there is something to spread, else the plain one."""
    recipe, settings = config.recipe, config.deepspeed
    dtype = compute_dtype(recipe.precision or "float32", processes.device.type)
    decay, norm = recipe.weight_decay or 0.0, recipe.max_grad_norm or 1.0
    if settings is not None and spreads(settings, processes.world_size):
        _single_process_group(processes)
        return DeepSpeedEngine(
            model,
            processes,
            settings,
            dtype=dtype,
            weight_decay=decay,
            max_grad_norm=norm,
            micro_sequences=batch.micro_sequences,
            accumulation=batch.accumulation,
        )
    if settings is not None and settings.zero_stage > 0:
        _log.info("ZeRO-%d has nothing to spread over one process: training without it.", settings.zero_stage)
    return PlainEngine(model, processes, dtype=dtype, weight_decay=decay, max_grad_norm=norm)


def spreads(settings: DeepSpeed, world_size: int) -> bool:
    """Whether ZeRO is asked for and has something to spread: over several processes, or into the host's memory."""
    return settings.zero_stage > 0 and (world_size > 1 or settings.offload != "none")


def _single_process_group(processes: Processes) -> None:
    """Give DeepSpeed the process group and the environment it wants, also where this process is alone."""
    if not dist.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")
        backend = "nccl" if processes.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]


def _resume(engine: Engine, state: State, checkpoint: Checkpoint, context: RunContext) -> None:
    engine.load(checkpoint.directory)
    state.step = state.saved_step = checkpoint.manifest.step
    state.notes = dict(checkpoint.manifest.notes)
    context.resumed_from_step = state.step
    passed_over = f"; not from {', '.join(checkpoint.passed_over)}" if checkpoint.passed_over else ""
    context.report(activity=f"resumed from step {state.step}{passed_over}", step=state.step)
