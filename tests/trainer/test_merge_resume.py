"""A merge that is killed goes on where it was, and ends with the bytes of one that was not."""

import errno
import importlib
import itertools
import multiprocessing
import os
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

import peft_models as build
from herdsman.api.v1alpha1.lora_merge import MergeOutputs
from herdsman_trainer import free_space
from herdsman_trainer.__main__ import ending, run_step
from herdsman_trainer.artifacts import read_manifest, verify_artifact
from herdsman_trainer.errors import Interrupted, Temporary
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.steps import lora_merge
from herdsman_trainer.tokenizers import copy_tokenizer
from herdsman_trainer.weights import appending, merge_pass
from herdsman_trainer.weights.merge import Merge
from herdsman_trainer.weights.merge_journal import Journal
from merges import merge, merge_config
from tiny import tiny_llama, tiny_sentencepiece

pytestmark = pytest.mark.usefixtures("one_thread")
OUTPUTS = MergeOutputs.model_validate(
    {"huggingface": {"maxShardMebibytes": 1}, "pth": {"shards": 2}, "gguf": [{"type": "Q8_0"}]}
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model of a few shards and two adapters, of which the first lets the vocabulary grow."""
    root = tmp_path_factory.mktemp("inputs")
    base = tiny_llama(root / "base", tiny_sentencepiece(root / "small", 400), hidden_size=128)
    first = build.adapter(root / "first", base, rows=410, seed=1)
    second = build.adapter(root / "second", base, rows=410, full=(), seed=2)
    large = tiny_sentencepiece(root / "large", 410)
    for adapter in (first, second):
        copy_tokenizer(large, adapter)
    return base, [first, second]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, inputs):
    artifact, directory = merge(tmp_path_factory.mktemp("undisturbed"), *inputs, outputs=OUTPUTS)
    return artifact, read_manifest(directory).files


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """A line of the journal after every 100 kB, and so after every second tensor or so; and no comparison with peft.

    Pieces are so small that most of what is written goes past the page cache, where the file system allows it.
    """
    monkeypatch.setattr(merge_pass, "STEP_BYTES", 100_000)
    monkeypatch.setattr(appending, "PIECE_BYTES", 16_384)
    monkeypatch.setattr(lora_merge, "probe", lambda *_: None)


def kill_at(place, call, *, after=False):
    """Let this process die before, or after, a call of a function of ours."""
    module, _, name = place.partition(":")
    holder = importlib.import_module(module)
    *outer, last = name.split(".")
    for part in outer:
        holder = getattr(holder, part)
    original, calls = getattr(holder, last), [0]

    def dying(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(holder, last, dying)


def killed(root, inputs, die, *, attempt=1, outputs=OUTPUTS):
    """Run an attempt in a process of its own, which is killed at a place that `die` prepares."""

    def attempt_to_merge():
        die()
        merge(root, *inputs, attempt=attempt, outputs=outputs)

    process = multiprocessing.get_context("fork").Process(target=attempt_to_merge)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def die_between_pieces(number, timeout):
    """Let this process die before a piece that no line of the journal speaks of, once the journal has its first line.

    Pieces are written by a thread of their own, and the journal by another: the piece waits for the line.
    """
    written, pieces = threading.Event(), itertools.count(1)
    append, put = Journal.append, appending.Appender._put_piece

    def appending_a_line(self, progress):
        append(self, progress)
        written.set()

    def putting(self, data, place):
        if next(pieces) == number:
            assert written.wait(timeout), "the first line of the journal waits for pieces that come later"
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, data, place)

    Journal.append, appending.Appender._put_piece = appending_a_line, putting


def taken_up(directory):
    return int(next(figure.value for figure in read_manifest(directory).report if figure.name == "tensors_taken_up"))


WEIGHTS = "herdsman_trainer.weights"
BOUNDARIES = [
    ("before the first byte", f"{WEIGHTS}.draft_files:DraftFile.write", 1, False, 0),
    ("inside of a tensor", f"{WEIGHTS}.draft_files:DraftFile.write", 40, False, 0),
    ("before the first piece", f"{WEIGHTS}.appending:Appender._put_piece", 1, False, 0),
    ("before the end of a file that is not a whole piece", f"{WEIGHTS}.appending:Appender.flush", 7, False, 0),
    ("after it", f"{WEIGHTS}.appending:Appender.flush", 7, True, 0),
    ("between two files of pth", f"{WEIGHTS}.pth_sink:PthSink._piece", 9, True, 0),
    ("before the disk has the first step", f"{WEIGHTS}.draft_files:DraftFiles.sync", 1, False, 0),
    ("before the first line of the journal", f"{WEIGHTS}.merge_journal:Journal.append", 1, False, 0),
    ("after the first line of the journal", f"{WEIGHTS}.merge_journal:Journal.append", 1, True, 1),
    ("after the third", f"{WEIGHTS}.merge_journal:Journal.append", 3, True, 4),
    ("before the index", f"{WEIGHTS}.safetensors_sink:SafetensorsSink.finish", 1, False, 10),
    ("after the end of the pth files", f"{WEIGHTS}.pth_sink:PthSink.finish", 1, True, 10),
    ("before the checks", "herdsman_trainer.steps.lora_merge:check_changes", 1, False, 10),
    ("before config.json", "herdsman_trainer.steps.lora_merge:write_description", 1, False, 10),
    ("before the digests", "herdsman_trainer.steps.lora_merge:write_tensor_digests", 1, False, 10),
    ("before the manifest", "herdsman_trainer.artifacts:write_file", 1, False, 10),
    ("after the manifest", "herdsman_trainer.artifacts:write_file", 1, True, 10),
    ("before its name", "herdsman_trainer.artifacts:check_attempt", 1, False, 10),
]


@pytest.mark.parametrize(
    ("place", "call", "after", "at_least"), [case[1:] for case in BOUNDARIES], ids=[case[0] for case in BOUNDARIES]
)
def test_what_was_killed_goes_on_and_ends_the_same(tmp_path, inputs, undisturbed, place, call, after, at_least):
    killed(tmp_path, inputs, partial(kill_at, place, call, after=after))
    assert not (tmp_path / "work/artifact").exists(), "a half-written model was called complete"
    artifact, directory = merge(tmp_path, *inputs, attempt=2, outputs=OUTPUTS)
    assert verify_artifact(directory, "Digests").files == undisturbed[1]
    assert artifact.digest == undisturbed[0].digest
    assert taken_up(directory) >= at_least
    assert sorted(path.name for path in (tmp_path / "work").iterdir() if not path.name.startswith(".")) == [
        "artifact",
        "progress.json",
    ]


def test_killed_between_pieces_it_goes_on_from_the_first_line(tmp_path, inputs, undisturbed):
    killed(tmp_path, inputs, lambda: die_between_pieces(90, timeout=60))
    artifact, directory = merge(tmp_path, *inputs, attempt=2, outputs=OUTPUTS)
    assert verify_artifact(directory, "Digests").files == undisturbed[1]
    assert artifact.digest == undisturbed[0].digest
    assert taken_up(directory) >= 1


def test_killed_after_it_has_its_name_it_is_complete(tmp_path, inputs, undisturbed):
    killed(tmp_path, inputs, partial(kill_at, f"{WEIGHTS}.merge_journal:Journal.remove", 1))
    assert verify_artifact(tmp_path / "work/artifact", "Digests").files == undisturbed[1]
    artifact, _ = merge(tmp_path, *inputs, attempt=2, outputs=OUTPUTS)
    assert artifact.digest == undisturbed[0].digest


def test_killed_again_and_again_it_comes_to_its_end(tmp_path, inputs, undisturbed):
    for attempt in range(1, 5):
        killed(
            tmp_path,
            inputs,
            partial(kill_at, f"{WEIGHTS}.merge_journal:Journal.append", 2, after=True),
            attempt=attempt,
        )
    _, directory = merge(tmp_path, *inputs, attempt=5, outputs=OUTPUTS)
    assert read_manifest(directory).files == undisturbed[1]
    assert taken_up(directory) > 10


def test_finished_tensors_are_not_computed_again(tmp_path, inputs, monkeypatch):
    killed(tmp_path, inputs, partial(kill_at, f"{WEIGHTS}.merge_journal:Journal.append", 3, after=True))
    computed, rows = [], Merge.rows
    monkeypatch.setattr(
        Merge, "rows", lambda self, name, multiple=1: computed.append(name) or rows(self, name, multiple)
    )
    _, directory = merge(tmp_path, *inputs, attempt=2, outputs=OUTPUTS)
    assert len(computed) + taken_up(directory) == 21
    assert len(computed) < 18


def test_sums_are_made_in_one_thread_so_that_bytes_do_not_follow_from_the_number_of_cores(
    tmp_path, inputs, undisturbed, monkeypatch
):
    seen, rows = set(), Merge.rows
    monkeypatch.setattr(Merge, "rows", lambda *given: seen.add(torch.get_num_threads()) or rows(*given))
    torch.set_num_threads(2)
    artifact, _ = merge(tmp_path, *inputs, outputs=OUTPUTS)
    assert seen == {1}
    assert torch.get_num_threads() == 2
    assert artifact.digest == undisturbed[0].digest


def spoil(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 8] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [(spoil, "*.safetensors"), (spoil, "pth/*.pth"), (Path.unlink, "gguf/*Q8_0.gguf")],
    ids=["a bit of a shard", "a bit of a pth file", "a file is gone"],
)
def test_what_does_not_lie_there_as_it_was_written_is_not_trusted(
    tmp_path, inputs, undisturbed, damage, pattern, caplog
):
    killed(tmp_path, inputs, partial(kill_at, f"{WEIGHTS}.merge_journal:Journal.append", 4, after=True))
    damage(min((tmp_path / "work/artifact.tmp-1").glob(pattern)))
    _, directory = merge(tmp_path, *inputs, attempt=2, outputs=OUTPUTS)
    assert verify_artifact(directory, "Digests").files == undisturbed[1]
    assert taken_up(directory) == 0
    assert "begins anew" in caplog.text


def test_a_merge_of_something_else_begins_anew(tmp_path, inputs):
    base, adapters = inputs
    killed(tmp_path, inputs, partial(kill_at, f"{WEIGHTS}.merge_journal:Journal.append", 4, after=True))
    changed = MergeOutputs.model_validate({"huggingface": {}})
    _, directory = merge(tmp_path, base, adapters, attempt=2, outputs=changed)
    assert taken_up(directory) == 0
    assert not (directory / "gguf").exists()
    assert not (directory / "pth").exists()
    verify_artifact(directory, "Digests")


def test_a_journal_whose_last_line_was_cut_is_read_up_to_it(tmp_path, inputs, undisturbed):
    killed(tmp_path, inputs, partial(kill_at, f"{WEIGHTS}.merge_journal:Journal.append", 4, after=True))
    journal = tmp_path / "work/merge.journal"
    journal.write_bytes(journal.read_bytes()[:-20])
    _, directory = merge(tmp_path, *inputs, attempt=2, outputs=OUTPUTS)
    assert read_manifest(directory).files == undisturbed[1]
    assert 0 < taken_up(directory) < 10


def test_stopped_on_request_it_keeps_every_tensor_it_has_written(tmp_path, inputs, undisturbed, monkeypatch):
    monkeypatch.setattr(merge_pass, "STEP_BYTES", 1 << 40)
    context = RunContext(merge_config(tmp_path, *inputs, outputs=OUTPUTS), rank=0)
    report = context.report

    def stop_at_the_last_tensor(**said):
        report(**said)
        if said["activity"] == "writing model.norm.weight":
            context.request_stop()

    monkeypatch.setattr(context, "report", stop_at_the_last_tensor)
    with pytest.raises(Interrupted):
        run_step(context.config, context)
    assert not (tmp_path / "work/artifact").exists()
    _, directory = merge(tmp_path, *inputs, attempt=2, outputs=OUTPUTS)
    assert read_manifest(directory).files == undisturbed[1]
    assert taken_up(directory) > 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_in_the_middle_is_told_and_the_next_attempt_goes_on(
    tmp_path, inputs, undisturbed, monkeypatch, number
):
    written, write = [0], os.pwrite

    def on_a_small_volume(descriptor, data, place):
        written[0] += len(data)
        if written[0] > 3_000_000:
            raise OSError(number, os.strerror(number))
        return write(descriptor, data, place)

    with monkeypatch.context() as small:
        small.setattr(appending.os, "pwrite", on_a_small_volume)
        with pytest.raises(Temporary) as caught:
            merge(tmp_path, *inputs, outputs=OUTPUTS)
    assert ending(caught.value)[0] == 75
    assert caught.value.reason == "DiskFull"
    assert caught.value.file.startswith(str(tmp_path / "work"))
    assert not (tmp_path / "work/artifact").exists()
    _, directory = merge(tmp_path, *inputs, attempt=2, outputs=OUTPUTS)
    assert read_manifest(directory).files == undisturbed[1]
    assert taken_up(directory) > 0


def test_room_is_asked_for_what_is_not_written_yet(tmp_path, inputs, monkeypatch):
    room = {"bytes": 2_000_000}
    monkeypatch.setattr(free_space, "free_bytes", lambda _: room["bytes"])
    with pytest.raises(Temporary, match="no space left for the merged model of") as caught:
        merge(tmp_path, *inputs, outputs=OUTPUTS)
    assert caught.value.reason == "DiskFull"
    room["bytes"] = 1 << 40
    killed(tmp_path, inputs, partial(kill_at, f"{WEIGHTS}.safetensors_sink:SafetensorsSink.finish", 1), attempt=2)
    room["bytes"] = 2_000_000
    _, directory = merge(tmp_path, *inputs, attempt=3, outputs=OUTPUTS)
    assert taken_up(directory) > 10
