"""The training loop: from the newest checkpoint to the last step, saving on the way and when asked to stop."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import torch

from herdsman.api.job_config import EVALUATED_STEP, HELD_OUT_LOSS
from herdsman.api.v1alpha1.recipes import TrainingRecipe
from herdsman_trainer.batches import TrainingStream
from herdsman_trainer.checkpoint_folder import Checkpoint
from herdsman_trainer.checkpoint_saver import CheckpointSaver
from herdsman_trainer.checkpoints import CheckpointStore
from herdsman_trainer.distributed import Processes
from herdsman_trainer.divergence import (
    PASSED_OVER,
    REWINDS,
    SINCE,
    SKIPPED,
    DivergenceWatch,
    RanAway,
    Seen,
    gone_back,
    in_a_streak,
)
from herdsman_trainer.engines import Engine, Update
from herdsman_trainer.errors import Diverged, Interrupted
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.loss_curve import LossCurve
from herdsman_trainer.optimisation import learning_rate, warmup_steps
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.utilisation import Utilisation

_log = logging.getLogger(__name__)


@dataclass
class State:
    """Where a run stands between two steps; the notes go into checkpoints and come back from them."""

    step: int = 0
    """Optimizer steps done."""
    notes: dict[str, float] = field(default_factory=dict)
    """Figures that outlive a restart: losses of the unmodified and the untrained model, the last loss, tokens, and how
    far the data is ahead of the steps."""
    saved_step: int = 0
    """The newest checkpoint's step, written or on its way."""

    @property
    def batch(self) -> int:
        """The global batch that comes next; with the step it is the whole cursor into the data."""
        return self.step + int(self.notes.get(PASSED_OVER, 0))

    def resume(self, checkpoint: Checkpoint) -> None:
        """Stand where the checkpoint was made."""
        self.step = self.saved_step = checkpoint.manifest.step
        of_the_step = (HELD_OUT_LOSS, EVALUATED_STEP)
        self.notes = {name: value for name, value in checkpoint.manifest.notes.items() if name not in of_the_step}


@dataclass(frozen=True)
class Between:
    """What is done between the steps, where the recipe asks for it."""

    evaluate: Callable[[], Mapping[str, float]] | None = None
    """Returns the figures of an evaluation on the held-out part."""
    sample: Callable[[int], object] | None = None
    """Lets the model write, and writes that down with the step."""


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
        between: Between | None = None,
        utilisation: Utilisation | None = None,
    ) -> None:
        self._engine = engine
        self._stream = stream
        self._recipe = recipe
        self._total_steps = total_steps
        self._store = store
        self._saver = CheckpointSaver(store, engine, processes, recipe.checkpoints.background)
        self._processes = processes
        self._context = context
        self._between = between or Between()
        self._utilisation = utilisation
        self._watch = DivergenceWatch(recipe.divergence, warmup_steps(total_steps, recipe.schedule))
        self._curve = LossCurve(total_steps)

    def train(self, state: State) -> State:
        """Run from `state` to the last step and save; returns the final state.

        Raises Interrupted where a stop was asked for: a step that has begun is given up unless it is already being
        applied, and what was done is saved. Raises Diverged where loss or gradient are not finite in more steps than
        the recipe passes over, and going back does not help or is not possible.
        """
        self._go_on_from(state)
        self._context.report(activity="training", step=state.step, total_steps=self._total_steps)
        try:
            while state.step < self._total_steps:
                self._step_and_save(state)
            self._saver.finish()
        finally:
            self._saver.close()
            self._tell_checkpoint()
        return state

    def _step_and_save(self, state: State) -> None:
        try:
            stop = self._step(state)
        except RanAway:
            raise
        except Diverged as error:
            self._go_back(state, error)
            return
        last = state.step == self._total_steps
        score = None if last else self._evaluate_between_steps(state, stop=stop)
        if stop:
            self._give_way(state, score)
        due = self._is_due(state.step, state.saved_step, self._recipe.checkpoints.every_steps)
        if last or self._is_among_best(score) or (due and not in_a_streak(state.notes)):
            self._save(state, score)
        self._tell_checkpoint()
        samples = self._is_due(state.step, state.step - 1, self._recipe.samples.every_steps)
        if self._between.sample is not None and samples and not last:
            self._between.sample(state.step)
            self._context.report(activity="training")

    def _is_among_best(self, score: float | None) -> bool:
        if score is None or not self._recipe.checkpoints.best:
            return False
        self._saver.finish()  # what is on its way is to be compared with, too
        return self._store.is_among_best(score)

    def _is_due(self, step: int, before: int, every: int | None) -> bool:
        """Whether a multiple of `every` lies behind `before` and not behind `step`; None is never."""
        return every is not None and step // every > before // every

    def _save(self, state: State, score: float | None = None, *, at_once: bool = False) -> None:
        """Save the state, unless that is done already; `score` is its held-out loss, where it was evaluated."""
        if state.saved_step == state.step:
            if at_once:
                self._saver.finish()
            return
        evaluated = {} if score is None else {HELD_OUT_LOSS: score, EVALUATED_STEP: float(state.step)}
        self._saver.save(state.step, {**state.notes, **evaluated}, at_once=at_once)
        state.saved_step = state.step

    def _tell_checkpoint(self) -> None:
        if not self._processes.is_first or not self._saver.is_news():
            return
        status, saved_at = self._store.status(), self._store.saved_at()
        if status is not None and saved_at is not None:
            self._context.report_checkpoint(status, saved_at)

    def _go_on_from(self, state: State) -> None:
        """Forget what was written down of steps that are done again."""
        if self._processes.is_first:
            self._context.records.drop_after(state.step)
            self._curve = LossCurve(self._total_steps, self._context.records.losses())
            if (status := self._store.status()) is not None and (saved_at := self._store.saved_at()) is not None:
                self._context.report_checkpoint(status, saved_at)

    def _give_way(self, state: State, score: float | None = None) -> NoReturn:
        self._save(state, score, at_once=True)
        raise Interrupted(f"Stopped on request after step {state.step}, which is saved.")

    def _go_back(self, state: State, error: Diverged) -> None:
        """Go back to the newest checkpoint from before the numbers went wrong, and on from there with other data."""
        if not self._watch.may_rewind(state.notes):
            times = int(state.notes.get(REWINDS, 0))
            again = f" That was after going back to a checkpoint {times} times." if times > 1 else ""
            again = " That was after going back to a checkpoint, with other data." if times == 1 else again
            raise Diverged(f"{error.message}{again}", hint=error.hint)
        self._saver.finish()
        done = state.step + 1  # the step that went wrong has consumed its batch
        first_bad = int(state.notes.get(SINCE, done))
        # The weights right before it may be what is wrong; those of a step earlier have shown a finite loss.
        checkpoint = self._store.newest(before=first_bad - 1) or self._store.newest(before=first_bad)
        if checkpoint is None:
            raise Diverged(f"{error.message} There is no checkpoint from before it to go back to.", hint=error.hint)
        now, since = state.notes, checkpoint.manifest.step
        self._engine.load(checkpoint.directory)
        state.resume(checkpoint)
        state.notes = gone_back(state.notes, now, step=done, to=since)
        self._store.discard_after(since)
        _log.warning("%s Going back to step %d; the data up to step %d is passed over.", error.message, since, done)
        self._go_on_from(state)
        if self._processes.is_first:
            self._context.record({"step": since, "event": f"went back from step {done}: {error.message}"})
        figures = {name: state.notes[name] for name in (REWINDS, SKIPPED) if name in state.notes}
        self._context.report(activity="training", step=since, metrics=figures)

    def _step(self, state: State) -> bool:
        """Do one optimizer step; returns whether any rank was asked to stop while it was applied."""
        began = self._context.clock()
        step, batch = state.step, state.batch
        rate = learning_rate(step, self._total_steps, self._recipe.learning_rate or 0.0, self._recipe.schedule)
        targets = self._stream.targets(batch)
        nll: torch.Tensor | float = 0.0
        tokens = 0.0
        update = Update(0.0, applied=True)
        if targets:  # else there is nothing to learn from, and decay alone would be a step nobody asked for
            sums = self._accumulate(state, batch, targets)
            while sums is None:
                self._compute_less_at_once()
                sums = self._accumulate(state, batch, targets)
            nll, tokens = sums
            update = self._engine.update(rate)
        nll, tokens, stop, lost = self._processes.sum(
            [float(nll), tokens, self._context.should_stop(), self._saver.failed]
        )
        if lost:
            self._saver.finish()
        loss = float(nll) / targets if targets else math.nan
        if targets and not self._engine.skips_overflows:  # fp16's loss scaling skips steps by itself
            seen = Seen(step + 1, loss, update.grad_norm, update.applied)
            self._watch.look(seen, state.notes, state.notes.get("train_loss_last"))
        state.step += 1
        HEART.beat(step=state.step)
        if targets and math.isfinite(loss):
            state.notes["train_loss_last"] = loss
            state.notes.setdefault("train_loss_first", loss)
        state.notes["train_tokens"] = state.notes.get("train_tokens", 0.0) + tokens
        self._report(state, loss, rate, update, tokens, self._context.clock() - began)
        return stop > 0

    def _accumulate(self, state: State, batch: int, targets: int) -> tuple[torch.Tensor | float, float] | None:
        """Add the gradients of this rank's part of a batch; returns (summed loss, tokens).

        None on every rank where any had too little memory for it.
        """
        nll: torch.Tensor | float = 0.0
        tokens, short = 0.0, False
        for micro in self._stream.micro_batches(batch, self._processes.rank):
            stop, shorts = self._processes.sum([self._context.should_stop(), short])
            if stop:
                self._give_way(state)  # a large global batch may take longer than the time there is to stop
            if shorts:
                return None
            if micro is None:
                continue
            try:
                nll = nll + self._engine.accumulate(micro, targets)
            except torch.OutOfMemoryError:
                if self._stream.micro_tokens is None:
                    raise
                short = True
            HEART.beat()
            tokens += int(micro.attention_mask.sum())
        return None if self._processes.any(short) else (nll, tokens)

    def _compute_less_at_once(self) -> None:
        """Halve the micro-batch, which changes memory and not the result, and forget what was begun."""
        stream = self._stream
        assert stream.micro_tokens is not None, "else the error was raised"
        if stream.micro_tokens <= stream.longest:
            raise torch.OutOfMemoryError(f"one sequence of {stream.longest} tokens does not fit")
        before, stream.micro_tokens = stream.micro_tokens, max(stream.longest, stream.micro_tokens // 2)
        self._engine.forget()
        torch.cuda.empty_cache()
        _log.warning(
            "Too little memory for %d tokens at once: %d from here on, which changes nothing but the speed.",
            before,
            stream.micro_tokens,
        )

    def _report(self, state: State, loss: float, rate: float, update: Update, tokens: float, seconds: float) -> None:
        if not self._processes.is_first:
            return
        speed = tokens / seconds if seconds > 0 else 0.0
        figures = {"loss": loss, "learning_rate": rate, "grad_norm": update.grad_norm}
        mfu = self._utilisation.of(tokens, self._stream.batch.sequences, seconds) if self._utilisation else None
        used = {"mfu": round(mfu, 4)} if mfu is not None else {}
        self._context.record(
            {
                "step": state.step,
                **figures,
                "tokens": round(tokens),
                "tokens_per_second": round(speed, 1),
                **used,
                "seconds": round(seconds, 4),
                "attempt": self._context.config.attempt,
                "applied": update.applied,
            }
        )
        self._curve.add(state.step, loss)
        shown = {name: value for name, value in {**figures, **used}.items() if math.isfinite(value)}
        shown |= {name: state.notes[name] for name in (REWINDS, SKIPPED) if name in state.notes}
        if self._processes.device.type == "cuda":
            shown["gpu_memory_bytes"] = torch.cuda.max_memory_allocated(self._processes.device)
        self._context.report(
            step=state.step, tokens_per_second=speed, loss_curve=str(self._curve) or None, metrics=shown
        )

    def _evaluate_between_steps(self, state: State, *, stop: bool) -> float | None:
        """Evaluate, where it is time to; returns the held-out loss.

        Where a stop is asked for meanwhile, save before giving way.
        """
        due = self._is_due(state.step, state.step - 1, self._recipe.evaluate_every_steps)
        if self._between.evaluate is None or not due or stop:
            return None
        try:
            figures = dict(self._between.evaluate())
        except Interrupted:
            self._save(state, at_once=True)
            raise
        if self._processes.is_first:
            self._context.record({"step": state.step, **figures})
        self._context.report(activity="training", metrics=figures)
        return figures.get(HELD_OUT_LOSS)
