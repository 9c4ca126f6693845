"""The training loop: from the newest checkpoint to the last step, saving on the way and when asked to stop."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import torch

from herdsman.api.v1alpha1.recipes import TrainingRecipe
from herdsman_trainer.batches import TrainingStream
from herdsman_trainer.checkpoints import CheckpointStore
from herdsman_trainer.distributed import Processes
from herdsman_trainer.engines import Engine, Update
from herdsman_trainer.errors import Diverged, Interrupted
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.optimisation import learning_rate
from herdsman_trainer.run_context import RunContext

_log = logging.getLogger(__name__)


@dataclass
class State:
    """Where a run stands between two steps; the notes go into checkpoints and come back from them."""

    step: int = 0
    """Optimizer steps done."""
    notes: dict[str, float] = field(default_factory=dict)
    """Figures that outlive a restart: losses of the unmodified and the untrained model, the last loss, tokens."""
    saved_step: int = 0
    """The newest checkpoint's step."""


class Trainer:
    """Runs the steps. Every rank runs the same ones; rank 0 reports and decides, and all agree on when to stop."""

    def __init__(
        self,
        engine: Engine,
        stream: TrainingStream,
        recipe: TrainingRecipe,
        total_steps: int,
        *,
        store: CheckpointStore,
        processes: Processes,
        context: RunContext,
        evaluate: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        self._engine = engine
        self._stream = stream
        self._recipe = recipe
        self._total_steps = total_steps
        self._store = store
        self._processes = processes
        self._context = context
        self._evaluate = evaluate

    def train(self, state: State) -> State:
        """Run from `state` to the last step and save; returns the final state.

        Raises Interrupted where a stop was asked for: a step that has begun is given up unless it is already being
        applied, and what was done is saved. Raises Diverged where loss or gradient are not finite.
        """
        if self._processes.is_first:
            self._context.metrics_log.drop_after(state.step)
            self._tell_checkpoint()
        self._context.report(activity="training", step=state.step, total_steps=self._total_steps)
        while state.step < self._total_steps:
            stop = self._step(state)
            last = state.step == self._total_steps
            if stop or last or state.step % (self._recipe.checkpoints.every_steps or self._total_steps) == 0:
                self.save(state)
            if stop:
                self._give_way(state)
            if self._recipe.evaluate_every_steps and not last and state.step % self._recipe.evaluate_every_steps == 0:
                self._evaluate_between_steps(state)
        return state

    def save(self, state: State) -> None:
        """Write a checkpoint of the state, unless it is the newest one already."""
        if state.saved_step == state.step:
            return
        self._store.save(state.step, self._engine.save, self._engine.state_bytes(), state.notes)
        state.saved_step = state.step
        if self._processes.is_first:
            self._tell_checkpoint()

    def _tell_checkpoint(self) -> None:
        status, saved_at = self._store.status(), self._store.saved_at()
        if status is not None and saved_at is not None:
            self._context.report_checkpoint(status, saved_at)

    def _give_way(self, state: State) -> NoReturn:
        self.save(state)
        raise Interrupted(f"Stopped on request after step {state.step}, which is saved.")

    def _step(self, state: State) -> bool:
        """Do one optimizer step; returns whether any rank was asked to stop while it was applied."""
        began = self._context.clock()
        step = state.step
        rate = learning_rate(step, self._total_steps, self._recipe.learning_rate or 0.0, self._recipe.schedule)
        targets = self._stream.targets(step)
        nll: torch.Tensor | float = 0.0
        tokens = 0.0
        update = Update(0.0, applied=True)
        if targets:  # else there is nothing to learn from, and decay alone would be a step nobody asked for
            for batch in self._stream.micro_batches(step, self._processes.rank):
                if self._processes.any(self._context.should_stop()):
                    self._give_way(state)  # a large global batch may take longer than the time there is to stop
                nll = nll + self._engine.accumulate(batch, targets)
                HEART.beat()
                tokens += int(batch.attention_mask.sum())
            update = self._engine.update(rate)
        nll, tokens, stop = self._processes.sum([float(nll), tokens, self._context.should_stop()])
        loss = nll / targets if targets else math.nan
        self._refuse_divergence(state, loss, update, targets)
        state.step += 1
        HEART.beat(step=state.step)
        if targets and math.isfinite(loss):
            state.notes["train_loss_last"] = loss
            state.notes.setdefault("train_loss_first", loss)
        state.notes["train_tokens"] = state.notes.get("train_tokens", 0.0) + tokens
        self._report(state, loss, rate, update, tokens, self._context.clock() - began)
        return stop > 0

    def _refuse_divergence(self, state: State, loss: float, update: Update, targets: int) -> None:
        """Raise Diverged for a loss or gradient that is not finite; fp16's loss scaling skips such steps itself."""
        if not targets or (math.isfinite(loss) and update.applied) or self._engine.skips_overflows:
            return
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient's norm is {update.grad_norm}"
        last = state.notes.get("train_loss_last")
        before = f" The last finite loss was {last:.4f}, at step {state.step}." if last is not None else ""
        raise Diverged(
            f"The {what} at step {state.step + 1}.{before}",
            hint="Lower recipe.learningRate, lengthen the warm-up, or lower recipe.maxGradNorm, in a new resource.",
        )

    def _report(self, state: State, loss: float, rate: float, update: Update, tokens: float, seconds: float) -> None:
        if not self._processes.is_first:
            return
        speed = tokens / seconds if seconds > 0 else 0.0
        figures = {"loss": loss, "learning_rate": rate, "grad_norm": update.grad_norm}
        self._context.metrics_log.append(
            {
                "step": state.step,
                **figures,
                "tokens": round(tokens),
                "tokens_per_second": round(speed, 1),
                "seconds": round(seconds, 4),
                "attempt": self._context.config.attempt,
                "applied": update.applied,
            }
        )
        shown = {name: value for name, value in figures.items() if math.isfinite(value)}
        if self._processes.device.type == "cuda":
            shown["gpu_memory_bytes"] = torch.cuda.max_memory_allocated(self._processes.device)
        self._context.report(step=state.step, tokens_per_second=speed, metrics=shown)

    def _evaluate_between_steps(self, state: State) -> None:
        """Evaluate; where a stop is asked for meanwhile, save before giving way."""
        if self._evaluate is None:
            return
        try:
            figures = dict(self._evaluate())
        except Interrupted:
            self.save(state)
            raise
        if self._processes.is_first:
            self._context.metrics_log.append({"step": state.step, **figures})
        self._context.report(activity="training", metrics=figures)
