"""`herdsman run` as a user meets it."""

import json
import signal
import socket

import pytest

from shells.homes import model_import, pretrain, release, server
from waiting import wait_until


def test_a_run_to_the_end_tells_each_resource_and_exits_with_0(herdsman):
    code, out, _ = herdsman("run", *herdsman.manifests(model_import(), pretrain()))
    assert code == 0
    assert "PretrainJob/zh    Waiting      after base" in out
    assert "heldout loss 2.125" in out
    assert "ModelImport/base  ✔ Succeeded" in out


def test_a_second_run_says_that_nothing_is_to_do_and_touches_no_file(herdsman):
    arguments = herdsman.manifests(model_import(), pretrain())
    herdsman("run", *arguments)
    files = [path for path in herdsman.home.root.rglob("*") if path.is_file() and path.name != "lock"]
    before = {path: path.stat().st_mtime_ns for path in files}
    code, out, _ = herdsman("run", *arguments)
    assert code == 0
    assert "Nothing to do: all 2 resources are as asked." in out
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_wrong_manifests_exit_with_2_and_nothing_is_made(herdsman):
    path = herdsman.write({**model_import(), "spec": {"sorce": {}}})
    code, _, err = herdsman("run", path)
    assert code == 2
    assert "2 problems in the manifests; nothing was applied" in err
    assert "spec.sorce: no such field; did you mean source?" in err
    assert not (herdsman.home.root / "resources").exists()


def test_a_failed_resource_exits_with_1_and_tells_cause_remedy_and_log(herdsman):
    herdsman.behave(base=[42])
    code, out, _ = herdsman("run", *herdsman.manifests(model_import(), pretrain()))
    assert code == 1
    assert "✘ ModelImport/base: zh.jsonl, line 7: No output in this record." in out
    assert "Add it." in out
    assert "herdsman logs modelimport base" in out
    assert "herdsman delete modelimport base --purge" in out


def test_a_missing_volume_exits_with_1_and_tells_the_option(herdsman):
    code, out, _ = herdsman("run", herdsman.write(model_import()))
    assert code == 1
    assert "--volume corpora=DIRECTORY" in out


def test_a_claim_among_the_manifests_is_a_directory_of_the_home(herdsman):
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "corpora"}}
    assert herdsman("run", herdsman.write(model_import(), claim))[0] == 0
    assert (herdsman.home.volumes / "corpora").is_dir()


def test_a_changed_immutable_field_is_refused_with_the_file_and_nothing_else_is_applied(herdsman):
    herdsman("run", *herdsman.manifests(model_import()))
    path = herdsman.write(model_import("new"), model_import(dtype="float32"))
    code, _, err = herdsman("run", path)
    assert code == 1
    line = path.read_text().splitlines().index("---") + 2
    assert f"{path}:{line}: ModelImport/base: spec.dtype was unset" in err
    assert not (herdsman.home.resources / "ModelImport" / "new.json").exists()


def test_without_a_path_it_goes_on_with_what_is_there(herdsman):
    herdsman.behave(base=[75])
    herdsman("run", *herdsman.manifests(model_import(maxRestarts=0)))
    assert "FAILED" not in herdsman("run")[1]
    assert herdsman("run")[0] == 1


def test_without_a_path_and_without_a_home_it_asks_for_manifests(herdsman):
    code, _, err = herdsman("run")
    assert code == 2
    assert "herdsman run PATH" in err


def test_a_python_without_a_trainer_is_refused_before_anything_is_made(herdsman, monkeypatch):
    monkeypatch.delenv("HERDSMAN_PYTHON")
    monkeypatch.setattr("herdsman.cli.run.find_spec", lambda _: None)
    code, _, err = herdsman("run", *herdsman.manifests(model_import()))
    assert code == 1
    assert "pip install 'herdsman[trainer,server]'" in err
    assert "HERDSMAN_PYTHON" in err
    assert not herdsman.home.exists


def test_json_lines_end_with_a_summary(herdsman):
    code, out, _ = herdsman("run", *herdsman.manifests(model_import()), "--output", "json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert {line["phase"] for line in lines[:-1]} >= {"Running", "Succeeded"}
    summary = lines[-1]["summary"]
    assert (summary["exitCode"], summary["resources"][0]["report"]) == (0, {"heldout_loss": "2.125"})


def test_a_server_with_a_key_is_talked_to_with_the_key_of_the_environment(herdsman, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    guarded = server(port=port, apiKey={"secret": {"name": "chat-keys", "key": "api"}})
    monkeypatch.setenv("HERDSMAN_API_KEY", "hunter2")
    assert herdsman("run", *herdsman.manifests(model_import(), guarded))[0] == 0
    assert herdsman("chat", "chat", "one two") == (0, "two one \n", "")
    monkeypatch.setenv("HERDSMAN_API_KEY", "other")
    assert "answered 400" in herdsman("chat", "chat", "one two")[2]


def test_a_server_is_told_with_a_request_to_copy(herdsman):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code, out, _ = herdsman("run", *herdsman.manifests(model_import(), server(port=port)))
    assert code == 0
    assert f"curl http://127.0.0.1:{port}/v1/chat/completions" in out
    assert '"model": "chat"' in out
    assert herdsman("chat", "chat", "one two three") == (0, "three two one \n", "")
    code, _, err = herdsman("chat", "chat", "bad")
    assert (code, "answered 400: this is not allowed" in err) == (1, True)
    code, out, _ = herdsman("stop")
    assert out == "ModelServer/chat stopped\n"
    assert herdsman("stop")[1] == "nothing is running here\n"
    assert "does not serve" in herdsman("chat", "chat", "one")[2]


@pytest.fixture
def holding(herdsman):
    """A run in a process of its own, with a trainer that works until it is stopped."""
    herdsman.behave(base=["hold", "done"])
    arguments = herdsman.manifests(model_import())
    process = herdsman.start("run", *arguments)
    started = herdsman.import_dir() / "started"
    wait_until(started.exists, "the trainer works", seconds=30)
    yield process, arguments
    process.kill()
    process.wait()
    process.stdout.close()


def test_ctrl_c_saves_and_exits_with_130_and_the_next_run_goes_on(herdsman, holding):
    process, arguments = holding
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "runs save what they have" in out
    assert "run the same command again to go on" in out
    assert (herdsman.import_dir() / "saved").exists()
    code, out, _ = herdsman("run", *arguments)
    assert code == 0
    described = herdsman("describe", "mi", "base")[1]
    assert "Interrupted" in described


def test_a_second_run_on_the_home_is_refused_with_the_process_id_of_the_first(herdsman, holding):
    process, arguments = holding
    code, _, err = herdsman("run", *arguments)
    assert code == 1
    assert f"process {process.pid} is at work in {herdsman.home.root}" in err
    code, _, err = herdsman("delete", "mi", "base")
    assert (code, f"process {process.pid}" in err) == (1, True)


def test_after_a_killed_supervisor_the_next_run_goes_on(herdsman, holding):
    process, arguments = holding
    process.kill()
    process.communicate()
    assert herdsman("run", *arguments)[0] == 0
    assert (herdsman.import_dir() / "saved").exists()
    assert herdsman("get", "mi", "base", "-o", "json")[1].count('"number"') == 2


def test_stop_ends_the_run_of_another_terminal(herdsman, holding):
    process, _ = holding
    code, out, _ = herdsman("stop")
    assert code == 0
    assert f"stopping herdsman run (process {process.pid})" in out
    assert process.wait(timeout=30) == 130
    assert (herdsman.import_dir() / "saved").exists()


def test_stop_of_one_resource_ends_it_alone(herdsman, holding):
    process, _ = holding
    code, out, _ = herdsman("stop", "modelimport", "base")
    assert (code, out) == (0, "ModelImport/base stopped; herdsman run goes on from there\n")
    assert process.wait(timeout=30) == 1
    release(herdsman.import_dir())


def test_what_is_seen_of_a_run_at_work(herdsman, holding):
    out = herdsman("get")[1]
    assert out.splitlines()[0].split() == ["RESOURCE", "PHASE", "PROGRESS", "STEP", "LOSS", "ETA", "AGE"]
    assert out.splitlines()[1].split()[:6] == ["ModelImport/base", "Running", "50%", "1/2", "5.312", "1s"]
    assert "started -m herdsman_trainer" in herdsman("logs", "mi", "base")[1]
