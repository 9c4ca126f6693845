"""What turns micro-batches into updates: the plain engine, and the interface DeepSpeed's shares with it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from herdsman_trainer.batches import Batch
from herdsman_trainer.distributed import Processes
from herdsman_trainer.errors import Diverged
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.lora import TrainedModel
from herdsman_trainer.objective import Objective
from herdsman_trainer.optimisation import adamw, set_learning_rate
from herdsman_trainer.training_state import (
    GROWTH_TRACKER,
    LOSS_SCALE,
    MOMENTS,
    PARAMETER,
    UPDATES,
    StateReader,
    StateSource,
)

MIN_LOSS_SCALE = 1.0
"""With an overflow here fp16's loss scaling has failed: 16 in a row lead there from the start."""
SCALER_GROWTH_INTERVAL = 100
"""Steps without overflow before the loss scale doubles; the published configuration's window."""


@dataclass(frozen=True)
class Update:
    """What became of one optimizer step."""

    grad_norm: float
    """Before clipping; may be infinite or not a number."""
    applied: bool
    """False where the gradient was not finite and the weights were left as they are."""


class Engine(StateSource, Protocol):
    """Computes gradients and applies them; every rank calls every method, in the same order."""

    skips_overflows: bool
    """Whether a gradient that is not finite is expected now and then, as with the loss scaling of fp16."""

    def accumulate(self, batch: Batch, targets: int) -> torch.Tensor:
        """Add the gradient of (summed loss / `targets`) and return the summed loss; `targets` is that of all ranks.

        The sum may still be under way on the device: who reads its value waits for it.
        """
        ...

    def update(self, rate: float) -> Update:
        """Sum the gradients over the ranks, clip, step, and forget the gradients."""
        ...

    def forget(self) -> None:
        """Forget the gradients that were added since the last update."""
        ...

    def token_nll(self, batch: Batch) -> torch.Tensor:
        """Return the loss of every target without gradients or dropout."""
        ...

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the logits of every position, (rows, length, vocabulary or more), without gradients or dropout."""
        ...

    def load(self, directory: Path) -> None:
        """Read the state from a checkpoint's file, whichever engine it is of, and give every rank its part."""
        ...

    def values(self) -> dict[str, torch.Tensor]:
        """Return the trained parameters, whole and float32, on the CPU of rank 0; empty on other ranks."""
        ...


class PlainEngine:
    """Data parallelism with the whole state on every rank: gradients are summed once a step, in float32.

    One process and N processes do the same mathematics; sums differ in their order only.
    """

    def __init__(
        self,
        model: TrainedModel,
        objective: Objective,
        processes: Processes,
        *,
        dtype: torch.dtype,
        weight_decay: float,
        max_grad_norm: float,
    ) -> None:
        self._trained = model.trained
        self._objective = objective
        self._processes = processes
        self._max_grad_norm = max_grad_norm
        self._parameters = list(model.trained.values())
        self.shapes = {name: item.shape for name, item in model.trained.items()}
        self._optimizer = adamw(model.trained, weight_decay)
        self.skips_overflows = dtype == torch.float16
        self._scaler = torch.amp.GradScaler(
            processes.device.type, enabled=self.skips_overflows, growth_interval=SCALER_GROWTH_INTERVAL
        )

    def accumulate(self, batch: Batch, targets: int) -> torch.Tensor:
        """Add the gradient of one micro-batch."""
        return self._objective.accumulate(batch, self._loss_scale() / targets)

    def _loss_scale(self) -> float:
        if not self._scaler.is_enabled():
            return 1.0
        if self._scaler._scale is None:  # made at the first use
            self._scaler.scale(torch.zeros((), device=self._processes.device))
        return float(self._scaler.get_scale())

    def update(self, rate: float) -> Update:
        """Sum, clip and step; a gradient that is not finite changes nothing (and halves the loss scale of fp16)."""
        set_learning_rate(self._optimizer, rate)
        self._sum_gradients()
        self._scaler.unscale_(self._optimizer)
        gradients = [item.grad for item in self._parameters if item.grad is not None]
        total = self._whole(torch.nn.utils.get_total_norm(gradients))
        norm = float(total)
        if not norm <= self._max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._max_grad_norm, total)
        finite = math.isfinite(norm)
        if finite or self._scaler.is_enabled():
            self._scaler.step(self._optimizer)
            self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self._objective.refresh()
        if self._scaler.is_enabled() and not finite and self._scaler.get_scale() <= MIN_LOSS_SCALE:
            raise overflow_streak()
        return Update(norm, finite)

    def forget(self) -> None:
        """Forget the gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def token_nll(self, batch: Batch) -> torch.Tensor:
        """Return the loss of every target without gradients or dropout."""
        return self._objective.token_nll(batch)

    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the logits of every position without gradients or dropout."""
        return self._objective.logits(input_ids, attention_mask)

    def scalars(self) -> dict[str, float]:
        """Return the number of updates, and the loss scaling of fp16."""
        states = self._optimizer.state
        updates = max((float(state["step"]) for state in states.values() if "step" in state), default=0.0)
        if not self._scaler.is_enabled():
            return {UPDATES: updates}
        scaler = self._scaler.state_dict()
        return {UPDATES: updates, LOSS_SCALE: scaler["scale"], GROWTH_TRACKER: float(scaler["_growth_tracker"])}

    def gather(self, entry: str, name: str) -> torch.Tensor:
        """Return a parameter or its moment; zeros for one that has no moment yet."""
        parameter = self._trained[name]
        if entry == PARAMETER:
            return self._whole(parameter)
        moment: torch.Tensor | None = self._optimizer.state.get(parameter, {}).get(entry)
        return torch.zeros(parameter.shape) if moment is None else self._whole(moment)

    def load(self, directory: Path) -> None:
        """Read the state; every rank reads the same file."""
        state = StateReader(directory)
        updates = state.scalar(UPDATES)
        for name, parameter in self._trained.items():
            with torch.no_grad():
                parameter.copy_(self._part(state.tensor(PARAMETER, name), parameter))
                # in the order in memory that the parameter has, which the fused optimizer takes for granted
                moments = {
                    entry: torch.empty_like(parameter, requires_grad=False).copy_(
                        self._part(state.tensor(entry, name), parameter)
                    )
                    for entry in MOMENTS
                }
            self._optimizer.state[parameter] = {"step": torch.tensor(updates), **moments}
            HEART.beat()
        if self._scaler.is_enabled():
            scaler = self._scaler.state_dict()
            scaler["scale"] = state.scalar(LOSS_SCALE, scaler["scale"])
            scaler["_growth_tracker"] = int(state.scalar(GROWTH_TRACKER))
            self._scaler.load_state_dict(scaler)
        self._objective.refresh()

    def values(self) -> dict[str, torch.Tensor]:
        """Return the trained parameters on rank 0."""
        if not self._processes.is_first:
            return {}
        return {name: item.detach().to("cpu") for name, item in self._trained.items()}

    def _sum_gradients(self) -> None:
        """Give every rank the sum of all ranks' gradients, as far as it holds them."""
        self._processes.sum_gradients(self._parameters)

    def _whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a parameter, or what has its form, as all ranks hold it together."""
        return tensor

    def _part(self, whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Return what this rank holds of a whole tensor where `like` is a parameter of its shape."""
        return whole


def gathered(source: StateSource, processes: Processes) -> dict[str, torch.Tensor]:
    """Put the trained parameters together from the parts of all ranks, on the CPU of rank 0; empty on other ranks."""
    values = {}
    for name in source.shapes:
        whole = source.gather(PARAMETER, name).detach().to("cpu")
        HEART.beat()
        if processes.is_first:
            values[name] = whole
    return values


def overflow_streak() -> Diverged:
    """Return the error of an fp16 run whose gradients overflow however small the loss scale."""
    return Diverged(
        f"fp16 overflowed in every step until the loss scale had fallen to {MIN_LOSS_SCALE:g}.",
        hint="Lower recipe.learningRate, or use precision bf16.",
    )
