"""One end of several ranks, and exit codes and last words of every kind of end."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
import torch

import training_configs as build
from herdsman.api.exit_codes import TerminationMessage
from herdsman.api.job_config import Launch
from herdsman_trainer import __main__ as command
from herdsman_trainer import launch, run_context
from herdsman_trainer.errors import BadInput, Diverged, Interrupted, Temporary
from ranks import free_port, start_child, wait_for

SAY = """
import os, sys
from pathlib import Path
words = '{"reason": "%s", "message": "rank %s"}' % (sys.argv[1], os.environ["RANK"])
Path(os.environ["HERDSMAN_TERMINATION_FILE"]).write_text(words)
"""


@pytest.fixture
def termination(tmp_path, monkeypatch):
    path = tmp_path / "termination.json"
    monkeypatch.setenv("HERDSMAN_TERMINATION_FILE", str(path))
    return path


def test_ranks_are_launched_only_where_there_are_several_and_this_is_none_of_them():
    assert launch.needs_launch(Launch(processes_per_node=2), {})
    assert launch.needs_launch(Launch(nodes=2), {})
    assert not launch.needs_launch(Launch(processes_per_node=2), {"RANK": "1"})
    assert not launch.needs_launch(Launch(), {})


def test_every_rank_is_told_its_number_and_the_address_of_rank_0():
    where = Launch(nodes=2, processes_per_node=2, master_address="run-0.run", master_port=1234)
    first, second = launch.rank_environments(where, {"JOB_COMPLETION_INDEX": "1", "HOME": "/h"}, cpus=8)
    assert (first["RANK"], second["RANK"]) == ("2", "3")
    assert (first["LOCAL_RANK"], second["LOCAL_RANK"]) == ("0", "1")
    assert {first[name] for name in ("WORLD_SIZE", "OMP_NUM_THREADS")} == {"4"}
    assert (first["MASTER_ADDR"], first["MASTER_PORT"], first["HOME"]) == ("run-0.run", "1234", "/h")


@pytest.mark.parametrize(
    ("codes", "decisive"),
    [
        pytest.param([0, 0], 0, id="all well: rank 0"),
        pytest.param([1, 42], 1, id="bad input explains why the peers crashed"),
        pytest.param([75, 43], 1, id="divergence is final"),
        pytest.param([1, 75], 1, id="a temporary fault explains the peers' crash"),
        pytest.param([1, -9], 1, id="a killed rank explains the peers' crash"),
        pytest.param([1, 7], 0, id="else the first"),
        pytest.param([0, 1], 1, id="one failure is a failure"),
    ],
)
def test_the_decisive_rank_is_the_one_that_knows_the_cause(codes, decisive):
    assert launch.decisive_rank(codes) == decisive


@pytest.mark.parametrize(
    ("codes", "ended", "decisive"),
    [
        pytest.param([75, 75], [1, 0], 1, id="who stalled first, before those who waited for it"),
        pytest.param([1, 1], [1, 0], 1, id="who crashed first"),
        pytest.param([1, 75], [0, 1], 1, id="a lost peer is no cause, even if it ended first"),
        pytest.param([0, 0], [1, 0], 0, id="a success is rank 0's"),
    ],
)
def test_of_ranks_that_failed_alike_the_first_to_end_is_decisive(codes, ended, decisive):
    assert launch.decisive_rank(codes, ended) == decisive


STALL_AFTER_RANK_1 = (
    SAY
    + """
mark = Path(sys.argv[2], "rank-1")
if os.environ["RANK"] == "1":
    mark.with_suffix(".tmp").write_text(str(os.getpid()))
    mark.with_suffix(".tmp").rename(mark)
else:
    while not mark.exists():
        os.sched_yield()
    try:
        while True:  # until the launcher has seen it end
            os.kill(int(mark.read_text()), 0)
            os.sched_yield()
    except ProcessLookupError:
        pass
sys.exit(75)
"""
)


def test_of_two_stalled_ranks_the_pod_tells_of_the_first(termination, tmp_path):
    assert run(STALL_AFTER_RANK_1, "Stalled", str(tmp_path)) == 75
    assert json.loads(termination.read_text()) == {"reason": "Stalled", "message": "rank 1"}


def run(script, *arguments, processes=2):
    return launch.run_ranks(Launch(processes_per_node=processes), [sys.executable, "-c", script, *arguments])


def test_the_decisive_ranks_words_become_the_pods(termination):
    assert run(SAY + "sys.exit(42 if os.environ['RANK'] == '1' else 1)", "BadInput") == 42
    assert json.loads(termination.read_text()) == {"reason": "BadInput", "message": "rank 1"}


def test_a_success_is_reported_by_rank_0(termination):
    assert run(SAY, "Succeeded") == 0
    assert json.loads(termination.read_text()) == {"reason": "Succeeded", "message": "rank 0"}


def test_a_rank_killed_without_a_word_was_most_likely_out_of_memory(termination):
    script = (
        "import os, signal\nif os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\nraise SystemExit(1)"
    )
    assert run(script) == 137
    assert json.loads(termination.read_text())["reason"] == "OutOfMemory"


def test_ranks_that_hang_after_another_failed_are_killed(termination, monkeypatch):
    monkeypatch.setattr(launch, "PEER_SECONDS", 0.1)
    script = SAY + "import signal\nif os.environ['RANK'] == '0': signal.pause()\nsys.exit(75)"
    assert run(script, "DiskFull") == 75
    assert json.loads(termination.read_text())["message"] == "rank 1"


def test_sigterm_is_passed_on_and_the_ranks_have_time_to_save(termination, tmp_path):
    script = (
        "import signal, sys\nfrom pathlib import Path\n"
        "def save(*_): Path(sys.argv[2], 'saved-' + os.environ['RANK']).touch(); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        + SAY
        + "Path(sys.argv[2], 'ready-' + os.environ['RANK']).touch()\nsignal.pause()"
    )
    parent = start_child(lambda: os._exit(run("import os\n" + script, "Interrupted", str(tmp_path))))
    while not all((tmp_path / f"ready-{rank}").exists() for rank in (0, 1)):
        os.sched_yield()
    os.kill(parent, signal.SIGTERM)
    assert wait_for(parent) == 75
    assert {path.name for path in tmp_path.glob("saved-*")} == {"saved-0", "saved-1"}
    assert json.loads(termination.read_text())["reason"] == "Interrupted"


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (BadInput("Wrong.", file="a.txt", line=3, hint="Fix it."), 42, "BadInput"),
        (Diverged("Not finite."), 43, "Diverged"),
        (Interrupted("Stopped."), 75, "Interrupted"),
        (Temporary("Later."), 75, "Temporary"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 75, "DiskFull"),
        (MemoryError(), 75, "OutOfMemory"),
        (torch.OutOfMemoryError("CUDA out of memory."), 75, "OutOfMemory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 75, "OutOfMemory"),
        (KeyError("bug"), 1, "Crashed"),
    ],
)
def test_every_end_has_an_exit_code_and_a_reason(error, code, reason):
    assert command.ending(error)[0] == code
    assert command.ending(error)[1].reason == reason


def test_bad_input_keeps_file_line_and_remedy(termination, tmp_path, monkeypatch, capsys):
    config = build.pretrain_config(tmp_path)
    (tmp_path / "config.json").write_text(config.model_dump_json(by_alias=True))

    def refuse(*_):
        raise BadInput("Wrong.", file="a.txt", line=3, hint="Fix it.")

    monkeypatch.setattr(command, "run_step", refuse)
    assert command.main(["--config", str(tmp_path / "config.json")]) == 42
    message = TerminationMessage.model_validate_json(termination.read_bytes())
    assert (message.message, message.file, message.line, message.hint) == ("Wrong.", "a.txt", 3, "Fix it.")
    assert capsys.readouterr().err == "a.txt:3: Wrong. Fix it.\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "kind"),
        ('{"kind": "PretrainJob", "attempt": "two"}', "PretrainJob.owner"),
        ("no json", "Invalid JSON"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_bad_input(termination, tmp_path, content, words):
    path = tmp_path / "config.json"
    path.write_text(content)
    assert command.main(["--config", str(path)]) == 42
    assert words in json.loads(termination.read_text())["message"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device", "f"), Temporary("No space.", reason="DiskFull", file="f")],
    ids=["while writing", "before writing"],
)
def test_a_full_disk_is_named_by_its_claim(termination, tmp_path, monkeypatch, error):
    def fill(*_):
        raise error

    (tmp_path / "config.json").write_text(build.pretrain_config(tmp_path).model_dump_json(by_alias=True))
    monkeypatch.setattr(command, "run_step", fill)
    assert command.main(["--config", str(tmp_path / "config.json")]) == 75
    told = json.loads(termination.read_text())
    assert (told["reason"], told["file"]) == ("DiskFull", "f")
    assert told["message"].endswith("The volume is that of the claim claim.")


def test_last_words_come_before_the_last_progress_which_may_hang(termination, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(build.pretrain_config(tmp_path).model_dump_json(by_alias=True))
    monkeypatch.setattr(command, "run_step", lambda *_: 1 // 0)
    told = []
    monkeypatch.setattr(run_context.RunContext, "close", lambda *_, **__: told.append(termination.exists()))
    assert command.main(["--config", str(tmp_path / "config.json")]) == 1
    assert told == [True]


def test_a_crash_leaves_its_traceback_in_the_log(termination, tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text(build.pretrain_config(tmp_path).model_dump_json(by_alias=True))
    monkeypatch.setattr(command, "run_step", lambda *_: 1 // 0)
    assert command.main(["--config", str(tmp_path / "config.json")]) == 1
    assert json.loads(termination.read_text())["reason"] == "Crashed"
    assert "ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("starter", ["herdsman", "torchrun"])
def test_two_real_ranks_train_and_publish(termination, tmp_path, starter):
    build.base_model(tmp_path)
    build.corpus(tmp_path)
    config = build.pretrain_config(tmp_path, processes=2, port=free_port(), max_steps=2)
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json(by_alias=True))
    module = ["-m", "herdsman_trainer", "--config", str(path)]
    by_hand = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    argv = [sys.executable, *(by_hand if starter == "torchrun" else []), *module]
    ended = subprocess.run(argv, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    message = TerminationMessage.model_validate_json(termination.read_bytes())
    assert (message.reason, message.step) == ("Succeeded", 2)
    assert (tmp_path / message.artifact.path / "adapter_model.safetensors").is_file()
