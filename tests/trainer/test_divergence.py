"""Numbers that are not finite: what is passed over, what is gone back for, and what ends a run and how it says so."""

import json
import math

import pytest

from herdsman.api.v1alpha1.divergence import Divergence
from herdsman.api.v1alpha1.recipes import Checkpoints, PretrainRecipe, Schedule
from herdsman_trainer.batches import TrainingStream
from herdsman_trainer.checkpoints import CheckpointStore, Identity
from herdsman_trainer.distributed import Processes
from herdsman_trainer.divergence import DivergenceWatch, RanAway, Seen
from herdsman_trainer.errors import Diverged, Interrupted
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.sequence_order import GlobalBatch
from herdsman_trainer.training import State, Trainer
from numeric_engine import Numbered, NumericEngine
from run_configs import run_config

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 12
ROWS = Numbered(1000)
STREAM = TrainingStream(ROWS, GlobalBatch(2, 2), seed=3)


def numbers(batch):
    """The sequences of a global batch."""
    return next(iter(STREAM.micro_batches(batch))).input_ids[:, 0] - 10


def poison(*batches):
    """One sequence of each of these global batches."""
    return {int(numbers(batch)[0]) for batch in batches}


def run(root, engine, *, attempt=1, stop_after=None, every=3, **policy):
    """Train, from the newest checkpoint if there is one; returns the final state and the context."""
    context = RunContext(run_config(root, attempt=attempt))
    recipe = PretrainRecipe(
        learning_rate=0.5,
        schedule=Schedule(kind="linear", warmup_ratio=0.0),
        checkpoints=Checkpoints(every_steps=every),
        divergence=Divergence(**policy),
    )
    store = CheckpointStore(context.checkpoints_dir, Processes(), Identity("a" * 64, attempt), keep_last=3)
    state = State()
    if (checkpoint := store.newest()) is not None:
        engine.load(checkpoint.directory)
        state.resume(checkpoint)
    trainer = Trainer(engine, STREAM, recipe, STEPS, store=store, processes=Processes(), context=context)
    if stop_after is not None:
        update = engine.update

        def stopping(rate):
            if state.step + 1 == stop_after:
                context.request_stop()
            return update(rate)

        engine.update = stopping
    return trainer.train(state), context


def lines(context):
    return [json.loads(line) for line in (context.workspace / "metrics.jsonl").read_text().splitlines()]


def seen_batches(engine):
    """Return which global batches were learnt from, in order."""
    place = {tuple(numbers(batch).tolist()): batch for batch in range(40)}
    return [place[each] for each in engine.seen]


def test_a_step_that_is_not_finite_is_passed_over_and_counted(tmp_path):
    engine = NumericEngine(poison(4, 5))
    state, context = run(tmp_path, engine)
    assert (state.step, state.notes["steps_not_finite"]) == (STEPS, 2)
    assert seen_batches(engine) == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]
    assert [line["step"] for line in lines(context) if not line["applied"]] == [5, 6]
    assert "not_finite_in_a_row" not in state.notes


def test_the_weights_are_those_of_a_run_without_the_data_of_the_step(tmp_path):
    engine, other = NumericEngine(poison(11)), NumericEngine()
    run(tmp_path / "one", engine)
    other_state, _ = run(tmp_path / "other", other, every=100)
    assert other_state.step == STEPS
    assert seen_batches(engine) == seen_batches(other)[:11]


def test_after_too_many_the_run_goes_back_and_on_with_other_data(tmp_path):
    engine = NumericEngine(spoilt_after=int(numbers(4)[0]))  # step 5 spoils the weights; 6, 7, 8 and 9 are not finite
    state, context = run(tmp_path, engine)
    assert state.step == STEPS
    assert seen_batches(engine) == [0, 1, 2, 3, 4, *range(9, 18)]
    assert (state.notes["rewinds"], state.notes["batches_passed_over"]) == (1, 6)
    assert state.notes["steps_not_finite"] == 4
    events = [line for line in lines(context) if "event" in line]
    assert [(line["step"], line["event"][:24]) for line in events] == [(3, "went back from step 9: T")]
    assert [line["step"] for line in lines(context) if "event" not in line] == list(range(1, STEPS + 1))
    assert torch_equal(engine.weights, straight_after_rewind())


def straight_after_rewind():
    """The weights of a run that learns from the same batches and meets nothing bad."""
    engine = NumericEngine()
    for step, batch in enumerate([0, 1, 2, *range(9, 18)]):
        for micro in STREAM.micro_batches(batch):
            engine.accumulate(micro, 2)
        engine.update(0.5 * (1 - step / STEPS))
    return engine.weights


def torch_equal(one, other):
    return bool((one == other).all())


@pytest.mark.parametrize("stop", [2, 5, 6, 8, 10])
def test_a_resumed_run_decides_as_one_that_was_not_disturbed(tmp_path, stop):
    spoilt = int(numbers(4)[0])
    straight = NumericEngine(spoilt_after=spoilt)
    expected, _ = run(tmp_path / "straight", straight)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", NumericEngine(spoilt_after=spoilt), stop_after=stop)
    engine = NumericEngine(spoilt_after=spoilt)
    state, context = run(tmp_path / "cut", engine, attempt=2)
    assert torch_equal(engine.weights, straight.weights)
    for name in ("rewinds", "batches_passed_over", "steps_not_finite"):
        assert state.notes[name] == expected.notes[name]
    assert len([line for line in lines(context) if "event" in line]) == 1


def test_no_checkpoint_is_made_of_weights_that_may_be_spoilt(tmp_path):
    engine = NumericEngine(spoilt_after=int(numbers(4)[0]))
    with pytest.raises(Diverged):
        run(tmp_path, engine, rewinds=0)
    saved = sorted(path.name for path in (tmp_path / "work" / "checkpoints").iterdir())
    assert saved == ["step-00000003"]  # not of step 6, whose loss is not a number


ENDS = {
    "nothing may be passed over": (
        poison(2),
        {"skip": 0, "rewinds": 0},
        "The loss is nan at step 3. The last finite loss was 2.0055, at step 2.",
    ),
    "before the first checkpoint": (
        poison(0, 1),
        {"skip": 1},
        "The loss is nan at step 2, for the 2nd step in a row. There is no checkpoint from before it to go back to.",
    ),
    "once more than it may go back": (
        poison(4, 5, 6, 7),
        {"skip": 1},
        "That was after going back to a checkpoint, with other data.",
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_the_end_says_what_was_tried_and_what_to_do(tmp_path, case):
    bad, policy, words = ENDS[case]
    with pytest.raises(Diverged) as diverged:
        run(tmp_path, NumericEngine(bad), **policy)
    error = diverged.value
    assert words in error.message
    assert error.exit_code == 43
    assert "learningRate" in error.hint


def test_the_newest_checkpoint_may_be_of_the_streak_itself_and_is_not_gone_back_to(tmp_path):
    spoilt = int(numbers(4)[0])
    with pytest.raises(Interrupted):
        run(tmp_path, NumericEngine(spoilt_after=spoilt), stop_after=7)
    assert (tmp_path / "work" / "checkpoints" / "step-00000007").is_dir()
    state, _ = run(tmp_path, NumericEngine(spoilt_after=spoilt), attempt=2)
    assert state.notes["rewinds"] == 1
    assert not (tmp_path / "work" / "checkpoints" / "step-00000007").exists()


RUNAWAY = Seen(4, 40.0, 1.0, applied=True)


def watch(runaway="Fail", early=0):
    return DivergenceWatch(Divergence(runaway=runaway), early)


def look(judge, losses, first=1, **notes):
    known = {"train_loss_first": losses[0], **notes}
    for place, loss in enumerate(losses):
        judge.look(Seen(first + place, loss, 1.0, applied=True), known, None)


def test_a_loss_that_runs_away_at_once_ends_the_run_and_says_so():
    with pytest.raises(RanAway, match=r"ran away at once: 42\.0000 at step 5, after 3\.0000 at the start") as error:
        look(watch(), [3.0, 3.5, 12.0, 38.0, 42.0, 41.0])
    assert error.value.exit_code == 43
    assert "learningRate" in error.value.hint


@pytest.mark.parametrize(
    ("losses", "notes"),
    [
        ([3.0, 3.5, 12.0, 38.0, 3.0, 38.0, 41.0], {}),
        ([0.1, 2.9, 3.0, 3.0, 2.9], {}),
        ([1.0, 9.0, 9.0, 9.0, 9.0], {"heldout_loss_before": 6.0}),
        ([10.8, 12.0, 15.0, 14.0], {}),
    ],
    ids=["not three in a row", "a first batch that was easy", "held-out text says the start was higher", "no doubling"],
)
def test_a_loss_that_may_have_other_reasons_goes_on(losses, notes):
    look(watch(), losses, **notes)


def test_a_loss_that_rises_later_is_no_matter_of_the_start():
    look(watch(), [3.0, *[40.0] * 5], first=20)
    with pytest.raises(RanAway):
        look(watch(early=50), [3.0, *[40.0] * 5], first=20)


def test_who_only_wants_to_be_warned_is_warned_once(caplog):
    look(watch("Warn"), [3.0, *[40.0] * 5])
    assert caplog.text.count("ran away at once") == 1


def test_a_gradient_that_is_not_finite_is_named():
    with pytest.raises(Diverged, match="The gradient's norm is inf at step 9"):
        DivergenceWatch(Divergence(skip=0), 0).look(Seen(9, 2.0, math.inf, applied=False), {}, None)
