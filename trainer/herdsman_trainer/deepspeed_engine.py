"""ZeRO through DeepSpeed: optimizer state (1), gradients (2) and weights (3) are spread over the processes.

Checkpoints are the plain engine's: whole tensors, gathered one at a time. So nothing is pickled, and a run may go on
with another number of processes. With fp16 DeepSpeed keeps a half-precision working copy and float32 master shards;
otherwise the trained weights themselves are float32, as in the plain engine.
"""

import importlib.util
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from herdsman.api.v1alpha1.recipes import DeepSpeed
from herdsman_trainer.batches import Batch
from herdsman_trainer.distributed import Processes, leave_stalls_to_the_watch
from herdsman_trainer.engines import MIN_LOSS_SCALE, SCALER_GROWTH_INTERVAL, Update, gathered, overflow_streak
from herdsman_trainer.errors import BadInput
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.lora import TrainedModel
from herdsman_trainer.objective import AutogradObjective, Objective, evaluation_logits, evaluation_nll, token_nll
from herdsman_trainer.optimisation import adamw, set_learning_rate
from herdsman_trainer.training_state import (
    GROWTH_TRACKER,
    LOSS_SCALE,
    MOMENTS,
    PARAMETER,
    UPDATES,
    StateReader,
)

BUCKET_ELEMENTS = 100_000_000
"""The published configuration's buckets; no larger than what is trained, because they are allocated whole."""


class Autocast(torch.nn.Module):
    """Runs a module under autocast: DeepSpeed switches off one that is entered outside of its engine."""

    def __init__(self, module: torch.nn.Module, device_type: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self._device_type = device_type
        self._dtype = dtype

    def forward(self, **inputs: Any) -> Any:
        """Call the module."""
        with torch.autocast(self._device_type, self._dtype, enabled=self._dtype != torch.float32):
            return self.module(**inputs)


class GradientsAtOnce(torch.nn.Module):
    """An objective that computes its own gradients, as DeepSpeed wants it: a module with a backward pass."""

    def __init__(
        self, module: torch.nn.Module, objective: Objective, trained: Sequence[torch.nn.Parameter], *, copies: bool
    ) -> None:
        super().__init__()
        self.module = module
        self._objective = objective
        self._trained = list(trained)
        self._copies = copies

    def forward(self, batch: Batch, scale: float) -> torch.Tensor:
        """Return the summed loss; its gradient is that of `scale` times the sum, whatever multiplies it later."""
        result: torch.Tensor = _HandedOut.apply(self._objective, batch, scale, self._copies, *self._trained)  # type: ignore[no-untyped-call]
        return result


class _HandedOut(torch.autograd.Function):
    """Computes gradients together with the loss and hands them out in the backward pass."""

    @staticmethod
    def forward(
        context: Any, objective: Objective, batch: Batch, scale: float, copies: bool, *trained: torch.nn.Parameter
    ) -> torch.Tensor:
        gathered = [each.grad for each in trained]
        for each in trained:
            each.grad = None
        total = objective.accumulate(batch, scale)
        given = [each.grad for each in trained]
        context.gradients = [None if each is None else each.clone() if copies else each.contiguous() for each in given]
        for each, before in zip(trained, gathered, strict=True):
            each.grad = before
        return total

    @staticmethod
    def backward(context: Any, *_: torch.Tensor) -> tuple[Any, ...]:
        gradients, context.gradients = context.gradients, None
        return (None, None, None, None, *gradients)


class DeepSpeedEngine:
    """Trains through deepspeed.initialize with torch's AdamW; needs at least two processes."""

    def __init__(
        self,
        model: TrainedModel,
        objective: Objective,
        processes: Processes,
        settings: DeepSpeed,
        *,
        dtype: torch.dtype,
        weight_decay: float,
        max_grad_norm: float,
        micro_sequences: int,
        accumulation: int,
    ) -> None:
        self._trained = model.trained
        self._objective = objective
        self.shapes = {name: item.shape for name, item in model.trained.items()}
        self._processes = processes
        self._dtype = dtype
        self._stage = settings.zero_stage
        self.skips_overflows = dtype == torch.float16
        bucket = min(BUCKET_ELEMENTS, sum(shape.numel() for shape in self.shapes.values()))
        configuration = zero_config(settings, dtype, max_grad_norm, micro_sequences, accumulation, bucket)
        module: torch.nn.Module
        if isinstance(objective, AutogradObjective):
            module = model.module if dtype == torch.float16 else Autocast(model.module, processes.device.type, dtype)
        else:
            # Stage 1 leaves the gradients where they are until the last micro-batch; an objective sums there again.
            copies = settings.zero_stage == 1
            module = GradientsAtOnce(model.module, objective, list(model.trained.values()), copies=copies)
        self._engine: Any = _deepspeed().initialize(
            model=module, optimizer=adamw(model.trained, weight_decay), config=configuration
        )[0]
        leave_stalls_to_the_watch(_world_group())
        self._engine.train()

    def accumulate(self, batch: Batch, targets: int) -> torch.Tensor:
        """Add the gradient of one micro-batch; DeepSpeed takes the mean over the ranks, so the loss is scaled up."""
        scale = self._processes.world_size / targets
        if isinstance(self._objective, AutogradObjective):
            self._objective.place(batch)
            total = token_nll(self._engine, batch, self._processes.device, self._dtype).sum()
            self._engine.backward(total * scale, scale_wrt_gas=False)
        else:
            scale *= float(self._engine.optimizer.loss_scale) if self.skips_overflows else 1.0
            total = self._engine(batch, scale)
            self._engine.backward(total, scale_wrt_gas=False)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
        return total.detach()

    def update(self, rate: float) -> Update:
        """Finish the step; DeepSpeed sums, clips and applies, and skips the step where fp16 overflowed."""
        set_learning_rate(self._engine.optimizer, rate)
        skipped = self._engine.skipped_steps
        self._engine.step()
        self._objective.refresh()
        norm = self._engine.get_global_grad_norm()
        norm = math.nan if norm is None else float(norm)
        applied = self._engine.skipped_steps == skipped and math.isfinite(norm)
        if self.skips_overflows and not applied and self._engine.optimizer.loss_scale <= MIN_LOSS_SCALE:
            raise overflow_streak()
        return Update(norm, applied)

    def forget(self) -> None:
        """Forget the gradients."""
        self._engine.zero_grad()

    def token_nll(self, batch: Batch) -> torch.Tensor:
        """Return the loss of every target without gradients or dropout."""
        if isinstance(self._objective, AutogradObjective):
            return evaluation_nll(self._engine, batch, self._processes.device, self._dtype)
        return self._objective.token_nll(batch)

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the logits of every position without gradients or dropout."""
        if isinstance(self._objective, AutogradObjective):
            return evaluation_logits(self._engine, input_ids, attention_mask, self._processes.device, self._dtype)
        return self._objective.logits(input_ids, attention_mask)

    def scalars(self) -> dict[str, float]:
        """Return the number of updates, and the loss scaling of fp16."""
        scalars = {UPDATES: float(self._updates())}
        if self.skips_overflows:
            scaler = self._engine.optimizer.loss_scaler
            tracker = scaler.cur_iter - scaler.last_overflow_iter - 1
            scalars |= {LOSS_SCALE: float(scaler.cur_scale), GROWTH_TRACKER: float(tracker)}
        return scalars

    def gather(self, entry: str, name: str) -> torch.Tensor:
        """Put a parameter or its moment together from the shards."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter = self._trained[name]
        if entry == PARAMETER:
            whole = safe_get_full_fp32_param(parameter)
        elif self._updates() == 0:
            return torch.zeros(self.shapes[name])
        else:
            whole = safe_get_full_optimizer_state(parameter, entry)
        result: torch.Tensor = whole.view(self.shapes[name])
        return result

    def load(self, directory: Path) -> None:
        """Give every rank its part of the whole tensors."""
        state = StateReader(directory)
        zero = self._engine.optimizer
        updates = torch.tensor(state.scalar(UPDATES))
        for partition in self._partitions():
            # Moments that are there stay the tensors they are: DeepSpeed keeps views of them once a run has begun.
            known = zero.optimizer.state.get(partition, {})
            moments = {entry: known.get(entry, torch.zeros_like(partition)) for entry in MOMENTS}
            zero.optimizer.state[partition] = {"step": updates.clone(), **moments}
        if self._stage < 3:
            zero._lazy_init_hp_params_optimizer_state()
        for name, parameter in self._trained.items():
            for entry in (PARAMETER, *MOMENTS):
                self._spread(parameter, state.tensor(entry, name).to(self._processes.device), entry)
                HEART.beat()
        if self.skips_overflows:
            scaler = zero.loss_scaler
            scaler.cur_scale = state.scalar(LOSS_SCALE, scaler.cur_scale)
            scaler.cur_iter, scaler.last_overflow_iter = int(state.scalar(GROWTH_TRACKER)), -1
        self._objective.refresh()

    def values(self) -> dict[str, torch.Tensor]:
        """Gather the trained parameters; rank 0 gets them."""
        return gathered(self, self._processes)

    def _partitions(self) -> list[torch.Tensor]:
        """Return this rank's flat float32 shards, one a parameter group (stages 1, 2) or sub-group (3)."""
        zero = self._engine.optimizer
        shards = zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        return list(shards)

    def _updates(self) -> float:
        state = self._engine.optimizer.optimizer.state.get(self._partitions()[0], {})
        return float(state.get("step", 0.0))

    def _spread(self, parameter: torch.nn.Parameter, whole: torch.Tensor, entry: str) -> None:
        """Put this rank's part of a whole tensor into its shard, and new weights into the working copy too."""
        from deepspeed import utils

        if self._stage == 3:
            shard: Any = parameter.ds_tensor  # type: ignore[attr-defined]
            padded = torch.nn.functional.pad(
                whole.flatten(), (0, shard.numel() * self._processes.world_size - whole.numel())
            )
            whole_or_part = padded.narrow(0, shard.numel() * self._processes.rank, shard.numel())
            set_weight, set_moment = utils.safe_set_local_fp32_param, utils.safe_set_local_optimizer_state
        else:
            shard, whole_or_part = None, whole
            set_weight, set_moment = utils.safe_set_full_fp32_param, utils.safe_set_full_optimizer_state
        if entry != PARAMETER:
            set_moment(parameter, whole_or_part, entry)
            return
        set_weight(parameter, whole_or_part)
        with torch.no_grad():
            if shard is not None:
                shard.copy_(whole_or_part)
            if parameter.shape == whole.shape:  # stage 3 keeps small parameters whole, and empties the others
                parameter.copy_(whole)


def zero_config(
    settings: DeepSpeed,
    dtype: torch.dtype,
    max_grad_norm: float,
    micro_sequences: int,
    accumulation: int,
    bucket_elements: int = BUCKET_ELEMENTS,
) -> dict[str, Any]:
    """Return DeepSpeed's configuration: the published one, its optimizer and schedule left to us."""
    zero: dict[str, Any] = {
        "stage": settings.zero_stage,
        "allgather_bucket_size": bucket_elements,
        "reduce_bucket_size": bucket_elements,
        "allgather_partitions": True,
        "reduce_scatter": True,
        "contiguous_gradients": True,
        "overlap_comm": torch.cuda.is_available(),
    }
    if settings.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if settings.offload == "all" and settings.zero_stage == 3:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_sequences,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
    if dtype == torch.float16:
        config["fp16"] = {
            "enabled": True,
            "loss_scale": 0,
            "loss_scale_window": SCALER_GROWTH_INTERVAL,
            "initial_scale_power": 16,
            "hysteresis": 2,
            "min_loss_scale": int(MIN_LOSS_SCALE),
        }
    return config


def _world_group() -> Any:
    """Return DeepSpeed's own group of all processes, over which it shards."""
    from deepspeed.utils import groups

    return groups._get_data_parallel_group()


def check_installed() -> None:
    """Raise BadInput where the image has no DeepSpeed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise BadInput(
            "recipe.deepspeed is set and DeepSpeed is not installed in this image.",
            hint="Use the trainer image with DeepSpeed (pip install herdsman[deepspeed]), or set zeroStage to 0.",
        )


def _deepspeed() -> Any:
    check_installed()
    import deepspeed

    warnings.filterwarnings("ignore", message=".*torch.distributed.* is deprecated", category=FutureWarning)
    # Its shared-memory collectives for the CPU would be compiled at first use, which images without a compiler cannot.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
