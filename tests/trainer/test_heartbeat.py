"""What counts as progress, how long its absence is borne, and how a process in which nothing moves is ended."""

import json
import os
import re
import threading
import time

import pytest
import torch

import training_configs as build
from herdsman.api.exit_codes import TerminationMessage
from herdsman_trainer import __main__ as command
from herdsman_trainer import distributed, run_context
from herdsman_trainer.distributed import connected
from herdsman_trainer.heartbeat import HEART, SLOWEST_BYTES_PER_SECOND, Heart, Stall, Watch
from herdsman_trainer.launch import decisive_rank
from herdsman_trainer.stalls import stalled
from herdsman_trainer.training import Trainer
from ranks import as_ranks, in_child

LIMIT = 100.0


class Watched:
    """A heart that is looked at every second of a time the test moves."""

    def __init__(self):
        self.now = 0.0
        self.heart = Heart(self.clock)
        self.watch = Watch(self.heart, LIMIT, lambda _: None, clock=self.clock)

    def clock(self):
        return self.now

    def stall_within(self, seconds, each_second=lambda: None):
        """Let time pass; returns when the stall was found, or None."""
        began = self.now
        while self.now - began < seconds:
            self.now += 1.0
            each_second()
            self.stall = self.watch.look()
            if self.stall is not None:
                return self.now - began
        return None


def test_a_process_that_stands_still_is_stalled_after_the_limit_and_not_before():
    assert Watched().stall_within(10 * LIMIT) == LIMIT


def test_a_slow_process_that_moves_now_and_then_is_not():
    watched = Watched()

    def now_and_then():
        if watched.now % 90 == 0:
            watched.heart.beat()

    assert watched.stall_within(20 * LIMIT, now_and_then) is None


def test_what_it_did_last_is_known():
    watched = Watched()
    watched.heart.beat(activity="training", step=7)
    watched.heart.beat()
    watched.stall_within(2 * LIMIT)
    assert watched.stall == Stall(LIMIT, "training", 7, waited=False)


@pytest.mark.parametrize(
    ("block", "patience"),
    [
        pytest.param(lambda heart: heart.waiting(), 1.1 * LIMIT, id="who waits for others lets them tell"),
        pytest.param(lambda heart: heart.trusting(), float("inf"), id="who waits for one that is watched"),
        pytest.param(lambda heart: heart.handling(10**9), LIMIT + 50, id="a gigabyte in one call"),
    ],
)
def test_some_blocks_are_given_more_time_and_their_end_is_progress(block, patience):
    watched = Watched()
    with block(watched.heart):
        assert watched.heart.patience() == pytest.approx(patience)
        found = watched.stall_within(5 * LIMIT)
        assert found == pytest.approx(patience) if patience < float("inf") else found is None
    assert watched.heart.patience() == LIMIT
    assert watched.stall_within(LIMIT - 1) is None


def test_the_longer_of_two_times_holds_inside_of_a_block():
    heart = Heart()
    heart.limit = LIMIT
    with heart.handling(int(70 * SLOWEST_BYTES_PER_SECOND)), heart.waiting():
        assert (heart.patience(), heart.waits) == (LIMIT + 70, True)
    assert (heart.patience(), heart.waits) == (LIMIT, False)


def test_a_process_that_was_frozen_as_a_whole_is_not_stalled():
    watched = Watched()
    watched.stall_within(50)
    watched.now += 100 * LIMIT  # a laptop that slept: the watch did not live through it
    assert watched.watch.look() is None
    assert watched.stall_within(30) is None


def test_a_watch_of_real_time_leaves_a_thread_that_beats_alone():
    stalls = []
    heart = Heart()
    watch = Watch(heart, 0.2, stalls.append)
    watch.start()
    began = time.monotonic()
    while time.monotonic() - began < 0.8:
        heart.beat()
    watch.stop()
    assert stalls == []
    assert heart.limit is None


@pytest.mark.parametrize(
    ("stall", "rank", "message", "hint"),
    [
        (
            Stall(1800.4, "tokenising, 40 %", None, waited=False),
            None,
            "The run made no progress for 1800 seconds. The last activity was: tokenising, 40 %.",
            "a volume or a device that does not answer",
        ),
        (
            Stall(1980, "training", 12, waited=True),
            3,
            "Rank 3 made no progress for 1980 seconds. The last activity was: training, step 12. "
            "It waited for the other processes.",
            "the rank that does not wait is the one that hangs",
        ),
    ],
)
def test_the_last_words_say_where_for_how_long_and_what_to_do(stall, rank, message, hint):
    told = stalled(stall, rank, resumed_from_step=4)
    assert (told.reason, told.message, told.step, told.resumed_from_step) == ("Stalled", message, stall.step, 4)
    assert hint in told.hint
    assert "spec.stallSeconds" in told.hint


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Model and corpus."""
    root = tmp_path_factory.mktemp("home")
    build.base_model(root)
    build.corpus(root)
    return root


def configured(root, work, *, stall_seconds, attempt=1, **options):
    config = build.pretrain_config(root, work=work, attempt=attempt, **options)
    path = root / f"{work}-{attempt}.json"
    path.write_text(config.model_copy(update={"stall_seconds": stall_seconds}).model_dump_json(by_alias=True))
    return path


def train(path, termination, prepare=lambda: None):
    """Return a function that runs the trainer's command and ends the child with its exit code."""

    def work():
        torch.set_num_threads(1)
        os.environ["HERDSMAN_TERMINATION_FILE"] = f"{termination}{os.environ.get('RANK', '')}"
        prepare()
        os._exit(command.main(["--config", str(path)]))

    return work


def words(path):
    return TerminationMessage.model_validate_json(path.read_bytes())


def sleep_for_ever(mark):
    mark.touch()
    threading.Event().wait()


def seconds_after(mark):
    return time.time() - mark.stat().st_mtime


def test_a_step_that_hangs_ends_as_stalled_and_the_next_attempt_goes_on(home, tmp_path, capfd):
    limit, mark, last_words = 5.0, tmp_path / "hangs", tmp_path / "words"

    def hang_in_step_4():
        step = Trainer._step

        def hanging(self, state):
            if state.step == 3:
                sleep_for_ever(mark)
            return step(self, state)

        Trainer._step = hanging

    first = configured(home, "hung", stall_seconds=limit)
    assert in_child(train(first, last_words, hang_in_step_4)) == 75
    assert limit - 0.5 < seconds_after(mark) < limit + 15
    told = words(last_words)
    assert (told.reason, told.step) == ("Stalled", 3)
    assert "The last activity was: training, step 3." in told.message
    log = capfd.readouterr().err
    assert "Stalled: The run made no progress for 5 seconds" in log
    assert "in sleep_for_ever" in log

    second = configured(home, "hung", stall_seconds=60.0, attempt=2)
    assert in_child(train(second, last_words)) == 0
    told = words(last_words)
    assert (told.reason, told.step, told.resumed_from_step) == ("Succeeded", 6, 2)


def test_a_volume_that_hangs_before_the_work_begins_is_noticed_too(home, tmp_path):
    def hang():
        HEART.activity, HEART.step = "starting", None  # as in a process that has done nothing else before
        run_context.claim_workspace = lambda _: threading.Event().wait()

    path = configured(home, "dead", stall_seconds=0.5)
    assert in_child(train(path, tmp_path / "words", hang)) == 75
    assert "The last activity was: starting." in words(tmp_path / "words").message


def test_a_rank_that_hangs_in_place_of_a_collective_ends_all_and_tells_why(home, tmp_path):
    def hang_on_rank_1():
        if os.environ["RANK"] == "1":
            original = distributed._sum_bucket

            def hanging(parameters):
                if HEART.step == 3:
                    HEART.limit = 1.0
                    threading.Event().wait()
                original(parameters)

            distributed._sum_bucket = hanging

    path = configured(home, "gang", stall_seconds=60.0)
    codes = as_ranks(train(path, tmp_path / "words", hang_on_rank_1))
    assert (codes[1], decisive_rank(codes)) == (75, 1)
    assert codes[0] not in (0, 42, 43)
    told = words(tmp_path / "words1")
    assert (told.reason, told.step) == ("Stalled", 3)
    assert told.message.startswith("Rank 1 made no progress")
    assert "waited" not in told.message
    assert in_child(train(configured(home, "gang", stall_seconds=60.0, attempt=2), tmp_path / "words")) == 0
    assert words(tmp_path / "words").resumed_from_step == 2


STALLED = 9


def watched(function, limit):
    """Run `function(processes)` on two watched ranks; a stall is exit code 9."""

    def work():
        torch.set_num_threads(1)
        watch = Watch(HEART, limit, lambda _: os._exit(STALLED))
        with connected("cpu") as processes:
            watch.start()
            function(processes)
        watch.stop()

    return as_ranks(work)


def test_ranks_that_wait_while_rank_0_works_alone_are_not_stalled():
    def work_alone():
        began = time.monotonic()
        while time.monotonic() - began < 1.5:
            HEART.beat()

    assert watched(lambda processes: processes.on_first(work_alone), limit=0.5) == [0, 0]


def test_rank_0_that_hangs_while_it_works_alone_is_stalled():
    codes = watched(lambda processes: processes.on_first(threading.Event().wait), limit=0.5)
    assert codes[0] == STALLED
    assert codes[1] not in (0, STALLED)


def test_a_process_that_hangs_with_the_interpreter_in_its_hands_is_ended_too(capfd):
    def hang():
        Watch(HEART, 0.3, lambda _: os._exit(STALLED)).start()
        re.match("(a+)+$", 60 * "a" + "b")  # takes longer than the universe lasts, and lets no other thread run

    assert in_child(hang) == 1
    log = capfd.readouterr().err
    assert "Timeout (0:00:00" in log
    assert "in hang" in log


def test_every_activity_and_every_question_for_a_stop_is_progress(tmp_path):
    context = run_context.RunContext(build.pretrain_config(tmp_path), rank=1)
    for act in (lambda: context.report(activity="checking"), context.raise_if_stopped):
        HEART.last = 0.0
        act()
        assert HEART.last > 0.0
    assert HEART.activity == "checking"
    assert json.loads(context.progress_document())["step"] == 0
