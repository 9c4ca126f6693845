"""The training loop: when it saves, logs, stops, evaluates and gives up, with an engine that is scripted."""

import json
import math
import os
from datetime import datetime
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from herdsman.api.v1alpha1.recipes import Checkpoints, PretrainRecipe, Schedule
from herdsman_trainer.batches import TrainingStream
from herdsman_trainer.checkpoints import CheckpointStore, Identity
from herdsman_trainer.distributed import Processes
from herdsman_trainer.engines import Update
from herdsman_trainer.errors import Interrupted, Temporary
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.sequence_order import GlobalBatch
from herdsman_trainer.training import Between, State, Trainer
from herdsman_trainer.training_state import StateReader
from run_configs import run_config
from training_rows import Rows

pytestmark = pytest.mark.usefixtures("one_thread")


class ScriptedEngine:
    """An engine whose losses and updates are given; it keeps what it was asked for."""

    skips_overflows = False

    shapes: ClassVar = {"w": torch.Size([2])}

    def __init__(self, losses, norms=()):
        self.losses = list(losses)
        self.norms = list(norms)
        self.rates = []

    def accumulate(self, batch, targets):
        return self.losses[len(self.rates)] * batch.targets

    def update(self, rate):
        self.rates.append(rate)
        norm = self.norms[len(self.rates) - 1] if self.norms else 1.0
        return Update(norm, applied=math.isfinite(norm))

    def gather(self, entry, name):
        return torch.full((2,), float(len(self.rates)))

    def scalars(self):
        return {"updates": float(len(self.rates))}

    def load(self, directory):
        self.loaded = StateReader(directory).scalar("updates")


def recipe(**given):
    return PretrainRecipe(learning_rate=1.0, schedule=Schedule(kind="constant", warmup_ratio=0.0), **given)


def trainer(root, engine, *, steps=6, rows=None, evaluate=None, **given):
    context = RunContext(run_config(root))
    rows, processes = rows or Rows(), Processes()
    store = CheckpointStore(context.checkpoints_dir, processes, Identity("a" * 64, 1), keep_last=10)
    given = {"checkpoints": Checkpoints(every_steps=2)} | given
    stream = TrainingStream(rows, GlobalBatch(2, 2), seed=1)
    made = Trainer(
        engine,
        stream,
        recipe(**given),
        steps,
        store=store,
        processes=processes,
        context=context,
        between=Between(evaluate),
    )
    return made, context


def saved(context):
    return [int(path.name[-8:]) for path in sorted(context.checkpoints_dir.glob("step-*"))]


def log(context):
    return [json.loads(line) for line in (context.workspace / "metrics.jsonl").read_text().splitlines()]


def test_a_checkpoint_is_saved_at_every_interval_and_at_the_end(tmp_path):
    made, context = trainer(tmp_path, ScriptedEngine([3.0] * 5), steps=5)
    state = made.train(State())
    assert (state.step, state.saved_step) == (5, 5)
    assert saved(context) == [2, 4, 5]


def test_every_step_is_logged_with_loss_rate_norm_and_speed(tmp_path):
    made, context = trainer(tmp_path, ScriptedEngine([4.0, 3.0, 2.0]), steps=3)
    state = made.train(State())
    assert [line["step"] for line in log(context)] == [1, 2, 3]
    assert [line["loss"] for line in log(context)] == pytest.approx([4.0, 3.0, 2.0])
    assert {"learning_rate", "grad_norm", "tokens", "tokens_per_second", "attempt"} <= log(context)[0].keys()
    assert state.notes["train_loss_first"] == pytest.approx(4.0)
    assert state.notes["train_loss_last"] == pytest.approx(2.0)
    assert state.notes["train_tokens"] == sum(line["tokens"] for line in log(context))


def test_the_operator_learns_of_the_newest_checkpoint_and_when_it_was_made(tmp_path):
    made, context = trainer(tmp_path, ScriptedEngine([3.0] * 5), steps=5)
    made.train(State())
    told = json.loads(context.progress_document())
    assert told["checkpoint"] == {"latest": "checkpoints/step-00000005", "step": 5, "verified": True, "count": 3}
    metrics = {item["name"]: item["value"] for item in told["metrics"]}
    created = json.loads((context.checkpoints_dir / "step-00000005" / "manifest.json").read_text())["created"]
    assert int(metrics["checkpoint_timestamp_seconds"]) == datetime.fromisoformat(created).timestamp()
    assert {"loss", "learning_rate", "grad_norm"} < metrics.keys()


def test_a_resumed_run_tells_its_checkpoint_before_its_first_step(tmp_path):
    made, _ = trainer(tmp_path, ScriptedEngine([3.0] * 2), steps=2)
    made.train(State())
    made, context = trainer(tmp_path, ScriptedEngine([3.0] * 9), steps=9)
    made._store.newest()
    context.request_stop()
    with pytest.raises(Interrupted):
        made.train(State(step=2, saved_step=2))
    assert json.loads(context.progress_document())["checkpoint"]["step"] == 2


def test_a_full_disk_ends_the_run_with_the_figures_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    made, context = trainer(tmp_path, ScriptedEngine([3.0] * 6))
    free = iter([10**6, 28])
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=next(free), f_frsize=1, f_blocks=10**6))
    with pytest.raises(Temporary, match="of 24 bytes: 29 bytes are needed with a margin, and 28 bytes are free"):
        made.train(State())
    assert saved(context) == [2]


def test_a_stop_saves_the_step_just_done(tmp_path):
    engine = ScriptedEngine([3.0] * 6)
    made, context = trainer(tmp_path, engine, checkpoints=Checkpoints(every_steps=100))
    update = engine.update

    def stopped(rate):
        if len(engine.rates) == 2:
            context.request_stop()
        return update(rate)

    engine.update = stopped
    with pytest.raises(Interrupted, match="after step 3"):
        made.train(State())
    assert saved(context) == [3]


def test_a_stop_in_the_middle_of_a_step_gives_the_step_up(tmp_path):
    engine = ScriptedEngine([3.0] * 6)
    made, context = trainer(tmp_path, engine, rows=Rows(8), checkpoints=Checkpoints(every_steps=100))
    made._stream = TrainingStream(Rows(8), GlobalBatch(4, 2), seed=1)
    accumulate = engine.accumulate

    def stopped(batch, targets):
        if len(engine.rates) == 2:
            context.request_stop()
        return accumulate(batch, targets)

    engine.accumulate = stopped
    with pytest.raises(Interrupted, match="after step 2"):
        made.train(State())
    assert (saved(context), len(engine.rates)) == ([2], 2)


def test_a_stop_before_the_first_step_leaves_nothing_behind(tmp_path):
    made, context = trainer(tmp_path, ScriptedEngine([3.0] * 6))
    context.request_stop()
    with pytest.raises(Interrupted):
        made.train(State())
    assert saved(context) == []


def test_a_stop_during_an_evaluation_saves_first(tmp_path):
    def evaluate():
        raise Interrupted("Stopped on request during an evaluation.")

    engine = ScriptedEngine([3.0] * 6)
    given = {"evaluate_every_steps": 3, "checkpoints": Checkpoints(every_steps=100)}
    made, context = trainer(tmp_path, engine, evaluate=evaluate, **given)
    with pytest.raises(Interrupted):
        made.train(State())
    assert saved(context) == [3]


def test_evaluations_happen_between_the_steps_and_are_logged(tmp_path):
    figures = iter([{"heldout_loss": 2.0}, {"heldout_loss": 1.0}])
    engine = ScriptedEngine([3.0] * 6)
    made, context = trainer(tmp_path, engine, evaluate=lambda: next(figures), evaluate_every_steps=2)
    made.train(State())
    evaluations = [(line["step"], line["heldout_loss"]) for line in log(context) if "heldout_loss" in line]
    assert evaluations == [(2, 2.0), (4, 1.0)]  # the one after the last step belongs to the run's end


def test_steps_that_loss_scaling_skips_are_no_divergence(tmp_path):
    engine = ScriptedEngine([3.0] * 3, [math.inf, math.nan, 1.0])
    engine.skips_overflows = True
    made, context = trainer(tmp_path, engine, steps=3)
    made.train(State())
    assert [line["applied"] for line in log(context)] == [False, False, True]


def test_a_batch_without_targets_updates_nothing(tmp_path):
    engine = ScriptedEngine([3.0] * 4)
    made, context = trainer(tmp_path, engine, steps=4, rows=Rows(8, empty=range(8)))
    state = made.train(State())
    assert state.step == 4
    assert engine.rates == []
    assert {line["loss"] for line in log(context)} == {None}
