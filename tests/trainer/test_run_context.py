"""Progress, metrics and publishing of one attempt."""

import json

import pytest

from herdsman_trainer.errors import BadInput, Interrupted
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.run_records import RecordFile
from run_configs import run_config


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def context(root, **options):
    return RunContext(run_config(root), **options)


def progress(run):
    return json.loads((run.workspace / "progress.json").read_text())


def test_progress_has_percent_step_and_the_time_that_is_left(tmp_path):
    clock = Clock()
    run = context(tmp_path, clock=clock)
    run.report(activity="training", step=10, total_steps=100)
    clock.now += 20
    run.report(step=30, tokens_per_second=123.4, metrics={"loss": 1.23456789})
    written = progress(run)
    assert (written["percent"], written["step"], written["totalSteps"], written["activity"]) == (
        30,
        30,
        100,
        "training",
    )
    assert written["estimatedRemainingSeconds"] == 70  # 20 steps took 20 seconds, 70 are left
    assert written["tokensPerSecond"] == 123
    assert written["metrics"] == [{"name": "loss", "value": "1.23457"}]


def test_progress_is_written_once_a_second_but_a_new_activity_at_once(tmp_path):
    clock = Clock()
    run = context(tmp_path, clock=clock)
    run.report(activity="training", step=1, total_steps=9)
    run.report(step=2)
    assert progress(run)["step"] == 1
    clock.now += 1.0
    run.report(step=3)
    assert progress(run)["step"] == 3
    run.report(step=4, activity="evaluating")
    assert progress(run)["step"] == 4
    run.report(step=5)
    run.close()
    assert progress(run)["step"] == 5


def test_work_without_steps_says_which_share_is_done(tmp_path):
    clock = Clock()
    run = context(tmp_path, clock=clock)
    run.report(activity="copying a", done=0.0)
    clock.now += 5  # nothing was done yet, so this is no part of the speed
    run.report(activity="copying b", done=0.0)
    clock.now += 10
    run.report(activity="copying c", done=0.29)
    written = progress(run)
    assert (written["percent"], written["step"], written["activity"]) == (29, 0, "copying c")
    assert "totalSteps" not in written
    assert written["estimatedRemainingSeconds"] == 24  # 10 seconds for 0.29


def test_the_speed_is_counted_from_when_the_steps_begin(tmp_path):
    clock = Clock()
    run = context(tmp_path, clock=clock)
    run.report(activity="loading the model", step=40, total_steps=100)
    clock.now += 1000
    run.report(activity="training", step=40)
    clock.now += 10
    run.report(step=50)
    run.flush()
    assert progress(run)["estimatedRemainingSeconds"] == 50


def test_a_volume_that_cannot_take_the_progress_is_warned_of_once_and_no_fault(tmp_path, caplog):
    run = context(tmp_path)
    (run.workspace / ".progress.json.tmp").mkdir()  # nothing can be written there
    run.report(activity="training", step=1, total_steps=4)
    run.report(activity="evaluating", step=2)
    assert caplog.text.count("cannot be written") == 1
    assert run.step == 2


def test_other_ranks_write_nothing(tmp_path):
    run = context(tmp_path, rank=1)
    run.report(activity="training", step=1)
    run.close()
    assert not (run.workspace / "progress.json").exists()


def test_a_workspace_of_another_resource_is_refused(tmp_path):
    context(tmp_path)
    with pytest.raises(BadInput, match="belongs to") as refused:
        RunContext(run_config(tmp_path, uid="uid-2", name="other"))
    assert refused.value.reason == "PathConflict"


def test_a_stop_is_a_flag_that_steps_ask_for(tmp_path):
    run = context(tmp_path)
    run.raise_if_stopped()
    run.request_stop()
    assert run.should_stop()
    with pytest.raises(Interrupted):
        run.raise_if_stopped()


def test_what_was_published_is_found_by_a_later_attempt_of_the_same_resource(tmp_path):
    run = context(tmp_path)
    assert run.published() is None
    (run.work_dir / "tokenizer.model").write_bytes(b"pieces")
    artifact = run.publish(
        kind="tokenizer", source_dir=run.work_dir, vocab_size=7, report={"new_pieces": 3, "ratio": 1 / 3, "kind": "bpe"}
    )
    manifest = json.loads((tmp_path / artifact.path / "herdsman-artifact.json").read_text())
    assert {item["name"]: item["value"] for item in manifest["report"]} == {
        "new_pieces": "3",
        "ratio": "0.333333",
        "kind": "bpe",
    }
    assert RunContext(run_config(tmp_path, attempt=2)).published() == artifact


def test_a_resumed_log_has_one_line_for_each_step(tmp_path):
    log = RecordFile(tmp_path / "metrics.jsonl")
    log.drop_after(3)  # no file yet
    for step in range(1, 6):
        log.append({"step": step, "loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "lo')  # cut by a crash
    log.drop_after(3)
    log.append({"step": 4, "loss": float("nan")})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 3.0},
        {"step": 4, "loss": None},
    ]
