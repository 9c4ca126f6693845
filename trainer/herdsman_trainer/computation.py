"""Decides how a training is computed: by which engine, with which objective, and how much at once."""

import logging
import os

import torch
import torch.distributed as dist

from herdsman.api.v1alpha1.recipes import DeepSpeed
from herdsman_trainer.deepspeed_engine import DeepSpeedEngine
from herdsman_trainer.distributed import Processes
from herdsman_trainer.engines import Engine, PlainEngine
from herdsman_trainer.errors import BadInput
from herdsman_trainer.fsdp_engine import FsdpEngine
from herdsman_trainer.fused.memory import CPU_TOKENS, micro_batch
from herdsman_trainer.fused.model import FusedModel, place_dropout, why_not
from herdsman_trainer.lora import TrainedModel
from herdsman_trainer.models import compute_dtype, use_gradient_checkpointing
from herdsman_trainer.objective import AutogradObjective, Objective
from herdsman_trainer.sequence_order import GlobalBatch, largest_micro_batch
from herdsman_trainer.training_inputs import TrainingJob

CPU_MICRO_SEQUENCES = 8
GPU_MICRO_TOKENS = 4096
"""Tokens a process computes at once where the micro-batch is a number of sequences."""
OPTIMIZER_BYTES = 12
"""A trained value's gradient and two moments, in float32."""

_log = logging.getLogger(__name__)


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


def make_engine(
    config: TrainingJob, model: TrainedModel, objective: Objective, processes: Processes, batch: GlobalBatch
) -> Engine:
    """Return the engine that the recipe asks for where there is something to spread, else the plain one."""
    recipe, settings = config.recipe, config.deepspeed
    dtype = compute_dtype(recipe.precision or "float32", processes.device.type)
    decay, norm = recipe.weight_decay or 0.0, recipe.max_grad_norm or 1.0
    if settings is not None and spreads(settings, processes.world_size):
        _single_process_group(processes)
        return DeepSpeedEngine(
            model,
            objective,
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
    if recipe.fsdp is not None and processes.world_size > 1:
        return FsdpEngine(model, objective, processes, recipe.fsdp, dtype=dtype, weight_decay=decay, max_grad_norm=norm)
    return PlainEngine(model, objective, processes, dtype=dtype, weight_decay=decay, max_grad_norm=norm)


def make_objective(config: TrainingJob, model: TrainedModel, processes: Processes) -> Objective:
    """Return what computes losses and gradients: the passes written out, or transformers' modules where those cannot.

    BadInput where the recipe asks for what only the former do.
    """
    recipe, settings = config.recipe, config.deepspeed
    dtype = compute_dtype(recipe.precision or "float32", processes.device.type)
    reason = why_not(model)
    spread = settings is not None and spreads(settings, processes.world_size)
    if settings is not None and settings.zero_stage == 3 and spread:
        reason = reason or "ZeRO-3 spreads its weights"
    if recipe.fsdp is not None and processes.world_size > 1:
        reason = reason or "FSDP spreads its weights"
    if reason is None:
        recompute = recipe.recompute or "None"
        return FusedModel(
            model,
            dtype=dtype,
            seed=recipe.seed,
            recompute=recompute,
            base_format=recipe.base_format,
            rearrange=not spread,  # DeepSpeed takes parameters to lie row by row
        )
    if recipe.base_format != "Native":
        raise BadInput(
            f"recipe.baseFormat is {recipe.base_format}, which this training cannot have: {reason}.",
            hint="Leave recipe.baseFormat out, or use a stage and a ZeRO stage that keep the base frozen and whole.",
        )
    _log.info("The model is computed by transformers' modules: %s.", reason)
    if recipe.recompute != "None" and (recipe.recompute is not None or processes.device.type == "cuda"):
        use_gradient_checkpointing(model.base)
    model.module.train()
    return AutogradObjective(model.module, processes.device, dtype, place_dropout(model, recipe.seed))


def tokens_at_once(
    config: TrainingJob,
    model: TrainedModel,
    objective: Objective,
    engine: Engine,
    processes: Processes,
    batch: GlobalBatch,
    length: int,
) -> int | None:
    """Return the tokens of a micro-batch, and set how much is recomputed; None where it is a number of sequences.

    On a GPU they follow from the memory that is left, the same on all ranks.
    """
    packs = isinstance(objective, FusedModel) and isinstance(engine, PlainEngine)
    if not packs or config.recipe.batch.micro_sequences is not None or not isinstance(objective, FusedModel):
        return None
    if processes.device.type == "cpu":
        return max(length, CPU_TOKENS)
    trained = sum(item.numel() for item in model.trained.values())
    chosen = processes.on_first(
        lambda: micro_batch(
            model.base.config,
            length=length,
            share=batch.sequences // processes.world_size * length,
            free=torch.cuda.mem_get_info(processes.device)[0],
            item_bytes=compute_dtype(config.recipe.precision or "float32", "cuda").itemsize,
            trained_bytes=OPTIMIZER_BYTES * trained,
            recompute=config.recipe.recompute,
        )
    )
    objective.recompute = chosen.recompute
    if processes.is_first:
        _log.info("Micro-batches: %s", chosen.reason)
    return chosen.tokens


def spreads(settings: DeepSpeed, world_size: int) -> bool:
    """Whether ZeRO is asked for and has something to spread: over several processes, or into the host's memory."""
    return settings.zero_stage > 0 and (world_size > 1 or settings.offload != "none")


def _single_process_group(processes: Processes) -> None:
    """Give DeepSpeed the process group and the environment it wants, also where this process is alone."""
    if not dist.is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")
        backend = "nccl" if processes.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
