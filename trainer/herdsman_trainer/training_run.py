"""What pre-training and instruction tuning share: from checked inputs and data to a published artifact."""

import hashlib
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import LlamaForCausalLM

from herdsman.api.job_config import HELD_OUT_LOSS
from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.batches import TrainingStream
from herdsman_trainer.checkpoints import Checkpoint, CheckpointStore, Identity
from herdsman_trainer.computation import global_batch, make_engine, make_objective, tokens_at_once
from herdsman_trainer.distributed import Processes
from herdsman_trainer.engines import Engine
from herdsman_trainer.errors import BadInput
from herdsman_trainer.evaluation import HeldOut, evaluate
from herdsman_trainer.mixture import Mixture
from herdsman_trainer.models import compute_dtype, parameter_counts
from herdsman_trainer.objective import evaluation_logits, evaluation_nll
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.run_start import begin_records
from herdsman_trainer.samples import Sampler
from herdsman_trainer.step_budget import TrainingSequences, planned_steps
from herdsman_trainer.tokenizers import TextTokenizer
from herdsman_trainer.trackers import check_libraries
from herdsman_trainer.trained_artifact import publish_trained
from herdsman_trainer.training import Between, State, Trainer
from herdsman_trainer.training_inputs import TrainingInputs, TrainingJob, assemble, stage_of
from herdsman_trainer.utilisation import Utilisation, peak_of

NOT_MATHEMATICS = {
    "checkpoints",
    "evaluate_every_steps",
    "recompute",
    "deepspeed",
    "fsdp",
    "divergence",
    "samples",
}
"""Members of the recipe that may change between attempts: they decide how the result is reached and not what it is."""

PUBLISHED_STEP = "published_step"
"""The figure that says which step's weights became the artifact, where the best were asked for."""

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
    kept = recipe.checkpoints
    store = CheckpointStore(context.checkpoints_dir, processes, identity, kept.keep_last or 1, kept.best)
    check_libraries(config.report_to)
    check_held_out(config, data)
    checkpoint = store.newest()
    be_deterministic(device, checkpoint)

    state = State()
    evaluation = Evaluation(data, batch.micro_sequences, processes, context)
    held_out = data.held_out.sequences if data.held_out is not None else None
    sampler = Sampler(config, tokenizer, held_out, processes, context.records.samples)
    done = checkpoint.manifest.step if checkpoint else 0
    context.report(activity="loading the model", step=done, total_steps=steps)
    model = assemble(
        config,
        inputs,
        tokenizer,
        device,
        on_base=lambda base: (
            None if checkpoint else evaluation.of_base(base, config, inputs, tokenizer, state, sampler)
        ),
    )
    counts = parameter_counts(model.module)
    objective = make_objective(config, model, processes)
    engine = make_engine(config, model, objective, processes, batch)
    at_once = tokens_at_once(config, model, objective, engine, processes, batch, data.length)
    utilisation = Utilisation(model.base.config, engine.shapes, peak_of(device, processes.world_size))
    if checkpoint is not None:
        _resume(engine, state, checkpoint, processes, context)
    begin_records(config, context, processes, state.step, context.resumed_from_step)
    if checkpoint is None:
        state.notes |= evaluation.of_engine(engine, "_before")
        sampler.take(engine.logits, 0, "before")

    stream = TrainingStream(data.train, batch, recipe.seed, at_once, data.mixture)
    between = Between(
        (lambda: evaluation.of_engine(engine)) if data.held_out is not None else None,
        lambda step: sampler.take(engine.logits, step, "step"),
    )
    trainer = Trainer(
        engine,
        stream,
        recipe,
        steps,
        store=store,
        processes=processes,
        context=context,
        between=between,
        utilisation=utilisation,
    )
    trainer.train(state)
    after = evaluation.of_engine(engine, "_after")
    if recipe.checkpoints.publish == "Best":
        after = take_best(engine, store, after, steps, evaluation)
    sampler.take(engine.logits, int(after.get(PUBLISHED_STEP, steps)), "after")

    context.report(activity="writing the artifact")
    values = engine.values()
    figures = {"steps": steps, "trainable_parameters": counts[0], "parameters": counts[1], **data.figures}
    report = {**figures, **state.notes, **after}
    return processes.on_first(
        lambda: publish_trained(
            config,
            context,
            inputs,
            tokenizer,
            model,
            values,
            report,
            data=data.figures,
            data_key=data.key,
            world_size=processes.world_size,
        )
    )


def take_best(
    engine: Engine, store: CheckpointStore, last: dict[str, float], steps: int, evaluation: "Evaluation"
) -> dict[str, float]:
    """Bring back the evaluated checkpoint with the least held-out loss, unless the last step's is less still.

    Returns the figures of the weights that the engine then has, and which step they are of.
    """
    best = store.best()
    loss = last.get(f"{HELD_OUT_LOSS}_after", math.inf)
    if best is None or best.manifest.step == steps or best.manifest.notes[HELD_OUT_LOSS] >= loss:
        return {**last, PUBLISHED_STEP: steps}
    engine.load(best.directory)
    figures = evaluation.of_engine(engine, "_after")
    return {**figures, PUBLISHED_STEP: best.manifest.step, f"{HELD_OUT_LOSS}_last": loss}


def check_held_out(config: TrainingJob, data: TrainingData) -> None:
    """Raise BadInput where checkpoints are to be compared and nothing is held out to compare them by."""
    if config.recipe.checkpoints.best and data.held_out is None:
        raise BadInput(
            "recipe.checkpoints asks for the best checkpoint, and no part of the data is held out to compare them by.",
            hint="Set recipe.heldOutFraction above 0, add data, or leave keepBest and publish out.",
        )


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
        sampler: Sampler,
    ) -> None:
        """Note figures and samples of the unmodified model with its own tokenizer, where the vocabulary grows."""
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
        sampler.take_unmodified(lambda ids, mask: evaluation_logits(base, ids, mask, device, dtype), own)


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


def _resume(engine: Engine, state: State, checkpoint: Checkpoint, processes: Processes, context: RunContext) -> None:
    engine.load(checkpoint.directory)
    state.resume(checkpoint)
    context.resumed_from_step = state.step
    before, now = checkpoint.manifest.world_size, processes.world_size
    if before != now and processes.is_first:
        _log.info("The checkpoint was made by %d processes; its state is spread anew over %d.", before, now)
    passed_over = f"; not from {', '.join(checkpoint.passed_over)}" if checkpoint.passed_over else ""
    context.report(activity=f"resumed from step {state.step}{passed_over}", step=state.step)
