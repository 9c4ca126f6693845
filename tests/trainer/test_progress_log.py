"""What whoever follows a log sees of a healthy run."""

import logging

import pytest

from herdsman.api.v1alpha1.status import CheckpointStatus, Metric, Progress
from herdsman_trainer.progress_log import LOG_SECONDS, ProgressLog, sentence


def training(step, **more):
    return Progress(activity="training", step=step, total_steps=60, percent=step * 100 // 60, **more)


SENTENCES = {
    "loading the model": Progress(activity="loading the model"),
    "tokenising, 38 %": Progress(activity="tokenising, 38 %"),
    "copying, 40 %, 12s to go": Progress(activity="copying", percent=40, estimated_remaining_seconds=12),
    "training, step 23/60 (38 %), loss 6.077, 278 tokens/s, 1m21s to go": training(
        23, tokens_per_second=278, estimated_remaining_seconds=81, metrics=[Metric(name="loss", value="6.077")]
    ),
    "": Progress(),
}


@pytest.mark.parametrize("expected", SENTENCES)
def test_the_progress_in_one_line(expected):
    assert sentence(SENTENCES[expected]) == expected


def told(caplog, *news):
    """The lines written when these reports come at these times."""
    now = 0.0
    log = ProgressLog(lambda: now)
    with caplog.at_level(logging.INFO, logger="herdsman_trainer"):
        for at, progress in news:
            now = at
            log.tell(progress)
    return [record.message for record in caplog.records]


def test_steps_are_told_every_few_seconds(caplog):
    lines = told(caplog, *((float(step), training(step)) for step in range(31)))
    assert [line.split(",")[1].split()[1] for line in lines] == ["0/60", "10/60", "20/60", "30/60"]
    assert LOG_SECONDS == 10


def test_something_else_is_told_at_once_and_a_figure_in_it_is_nothing_else(caplog):
    tokenising = [(0.1 * share, Progress(activity=f"tokenising, {share} %")) for share in range(0, 50, 10)]
    assert told(caplog, *tokenising, (5.0, training(0))) == ["tokenising, 0 %", "training, step 0/60 (0 %)"]


def test_what_stands_still_is_told_once(caplog):
    assert len(told(caplog, *((20.0 * number, training(3)) for number in range(5)))) == 1


def test_every_checkpoint_is_told(caplog):
    with caplog.at_level(logging.INFO, logger="herdsman_trainer"):
        ProgressLog(lambda: 0.0).tell_checkpoint(CheckpointStatus(latest="checkpoints/step-00000020", step=20))
    assert caplog.messages == ["checkpoint of step 20 is verified (checkpoints/step-00000020)"]
