"""A run may be killed, the power cut, and any byte of a checkpoint damaged: it goes on, to the very same weights."""

import itertools
import os
import shutil
import signal

import pytest

from crash_states import Disk, Recorder, after_kills, after_power_cuts, write_tree
from herdsman.api.v1alpha1.recipes import Checkpoints, PretrainRecipe, Schedule
from herdsman_trainer.batches import TrainingStream
from herdsman_trainer.checkpoint_manifest import MANIFEST, name_of, verify
from herdsman_trainer.checkpoints import CheckpointStore, Identity
from herdsman_trainer.distributed import Processes
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.sequence_order import GlobalBatch
from herdsman_trainer.training import Between, State, Trainer
from herdsman_trainer.training_state import STATE_FILE, StateReader
from numeric_engine import Numbered, NumericEngine
from ranks import in_child
from run_configs import run_config

pytestmark = pytest.mark.usefixtures("one_thread", "fast_disk")
STREAM = TrainingStream(Numbered(1000), GlobalBatch(2, 2), seed=3)
STEPS = 7
TOLD = ("metrics.jsonl", "progress.json")
"""What is only told, so that its state changes nothing."""
RUN = "work"


@pytest.fixture
def fast_disk(monkeypatch):
    """The disk of the tests need not be flushed: what that would do is modelled."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def trainer_of(root, engine, attempt=1, *, background=False, every=2, keep_best=0):
    """Return a trainer and the state it starts from, as training_run has them."""
    context = RunContext(run_config(root, attempt=attempt))
    recipe = PretrainRecipe(
        learning_rate=0.5,
        schedule=Schedule(kind="linear", warmup_ratio=0.0),
        evaluate_every_steps=1 if keep_best else None,
        checkpoints=Checkpoints(every_steps=every, keep_best=keep_best, background=background),
    )
    processes = Processes()
    store = CheckpointStore(context.checkpoints_dir, processes, Identity("a" * 64, attempt), 2, keep_best)
    state = State()
    if (checkpoint := store.newest()) is not None:
        engine.load(checkpoint.directory)
        state.resume(checkpoint)

    def evaluate():
        return {"heldout_loss": float(engine.weights.abs().sum())}

    between = Between(evaluate if keep_best else None)
    made = Trainer(engine, STREAM, recipe, STEPS, store=store, processes=processes, context=context, between=between)
    return made, state, store


def train(root, attempt=1, **options):
    """Train to the end; returns the step it began with, and the weights."""
    engine = NumericEngine()
    trainer, state, _ = trainer_of(root, engine, attempt, **options)
    began = state.step
    trainer.train(state)
    return began, engine.weights.tolist()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The weights of a run that nothing disturbs."""
    return train(tmp_path_factory.mktemp("straight"))[1]


def disturbed(tree, root):
    """Lay the tree out as a volume and train on it to the end; returns the step it began with, and the weights."""
    write_tree(tree, root)
    result = train(root, attempt=2)
    left = {path.name.split("-")[0] for path in (root / RUN / "checkpoints").iterdir()}
    assert left == {"step"}  # nothing half done stays behind
    shutil.rmtree(root)
    return result


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Every change of the disk in a whole run, and after how many of them each step's checkpoint was reported."""
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fsync", lambda _: None)
    root = tmp_path_factory.mktemp("recorded")
    with Recorder(root) as recorder:
        engine = NumericEngine()
        trainer, state, _ = trainer_of(root, engine)
        reported = {}
        trainer._context.report_checkpoint = lambda status, _: reported.setdefault(status.step, len(recorder.events))
        trainer.train(state)
    patch.undo()
    return recorder, reported


def newest_promised(reported, count):
    """The step of the newest checkpoint that was told of before so many changes."""
    return max((step for step, at in reported.items() if at <= count), default=0)


def test_a_kill_at_any_change_of_the_disk_costs_no_reported_checkpoint_and_changes_no_weight(
    recorded, straight, tmp_path
):
    recorder, reported = recorded
    began = []
    for number, (count, tree) in enumerate(after_kills(recorder)):
        step, weights = disturbed(tree, tmp_path / str(number))
        assert step >= newest_promised(reported, count), recorder.events[count - 1]
        assert weights == straight
        began.append(step)
    assert began == sorted(began)  # the newest checkpoint never goes back
    assert set(began) == {0, 2, 4, 6, 7}
    assert len(began) > 80


def test_a_power_cut_at_any_moment_costs_no_reported_checkpoint_and_changes_no_weight(recorded, straight, tmp_path):
    recorder, reported = recorded
    known = {}
    states = 0
    for count, tree in after_power_cuts(recorder):
        key = repr(sorted(item for item in tree.items() if not item[0].endswith(TOLD)))
        if key not in known:
            known[key] = disturbed(tree, tmp_path / str(states))
        step, weights = known[key]
        assert step >= newest_promised(reported, count), recorder.events[count - 1]
        assert weights == straight
        states += 1
    assert states > 500
    assert len(known) > 50


def test_the_model_of_the_disk_notices_a_flush_that_is_left_out(tmp_path, monkeypatch):
    """The tests above show something: without the flush of the directory the checkpoint is not safe."""
    monkeypatch.setattr("herdsman_trainer.checkpoint_folder.fsync", lambda _: None)
    with Recorder(tmp_path) as recorder:
        engine = NumericEngine()
        trainer, state, _ = trainer_of(tmp_path, engine)
        trainer.train(state)
    disk = Disk(recorder.start)
    for event in recorder.events:
        disk.apply(event)
    assert any(f"{RUN}/checkpoints/{name_of(STEPS)}" not in tree for tree in disk.after_a_power_cut())


def test_real_kills_of_the_writing_thread_change_no_weight(straight, tmp_path):
    codes = []
    for call in itertools.count(1, 4):
        root = tmp_path / str(call)

        def killed(root=root, call=call):
            count = itertools.count(1)
            for name in ("fsync", "rename", "mkdir", "unlink"):
                original = getattr(os, name)

                def dying(*args, original=original, **options):
                    if next(count) == call:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return original(*args, **options)

                setattr(os, name, dying)
            train(root, background=True)

        codes.append(in_child(killed))
        assert train(root, attempt=2)[1] == straight
        if codes[-1] == 0:
            break
    assert set(codes[:-1]) == {-signal.SIGKILL}
    assert len(codes) > 10


def damaged_at(place):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[place % len(data)] ^= 1 << place % 8
        path.write_bytes(data)

    return damage


DAMAGES = {
    "is cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "is empty": lambda path: path.write_bytes(b""),
    "is gone": lambda path: path.unlink(),
    "has a flipped bit": damaged_at(700),
    "is that of the older checkpoint": lambda path: shutil.copy(path.parent.with_name(name_of(6)) / path.name, path),
}


@pytest.mark.parametrize("file", [STATE_FILE, MANIFEST])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_of_which_a_file(tmp_path, straight, damage, file):
    train(tmp_path)
    newest = tmp_path / RUN / "checkpoints" / name_of(7)
    DAMAGES[damage](newest / file)
    assert train(tmp_path, attempt=2) == (6, straight)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoint")
    train(root)
    return root / RUN / "checkpoints" / name_of(7)


@pytest.mark.parametrize("file", [STATE_FILE, MANIFEST])
def test_a_flipped_bit_anywhere_in_a_checkpoint_is_noticed(checkpoint, file):
    path = checkpoint / file
    whole = path.read_bytes()
    try:
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
            with pytest.raises(ValueError, match=file):
                verify(checkpoint)
    finally:
        path.write_bytes(whole)
    verify(checkpoint)


def test_the_best_stay_beside_the_newest_and_survive_a_restart(tmp_path):
    engine = NumericEngine()
    trainer, state, store = trainer_of(tmp_path, engine, keep_best=2, every=100)
    told = {}
    evaluate = trainer._between.evaluate

    def noting():
        told[state.step] = evaluate()["heldout_loss"]
        return {"heldout_loss": told[state.step]}

    trainer._between = Between(noting)
    trainer.train(state)
    best = sorted(told, key=told.get)[:2]
    kept = {int(path.name[-8:]) for path in store.root.iterdir()}
    assert kept >= {7, *best}
    assert len(kept) <= 4  # two newest and two best
    status = store.status()
    assert (status.step, status.best_step) == (7, best[0])
    assert float(status.best_heldout_loss) == pytest.approx(told[best[0]], rel=1e-5)
    again = trainer_of(tmp_path, NumericEngine(), attempt=2, keep_best=2)[2]
    found = again.best()
    assert found.manifest.step == best[0]
    assert StateReader(found.directory).tensor("parameter", "w").abs().sum() == pytest.approx(told[best[0]])
    (found.directory / STATE_FILE).write_bytes(b"")
    assert again.best().manifest.step == best[1]
