"""Whole imports of what is downloaded: published like others, for nothing the second time, and a kill loses nothing."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from downloading import import_config, partials, web
from herdsman.api.job_config import RemoteSource
from herdsman_trainer.__main__ import run_step
from herdsman_trainer.artifacts import verify_artifact
from herdsman_trainer.downloads.blob_store import STORE
from herdsman_trainer.errors import BadInput
from herdsman_trainer.run_context import RunContext
from remote_server import COMMIT, Fault, Repository, serving, sha256
from tiny import tiny_chatml_tokenizer, tiny_llama
from tiny_gguf import write_gguf
from waiting import wait_until

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model"), hidden_size=64)


@pytest.fixture
def remote(model):
    with serving() as found:
        files = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
        found.files = {f"/m/{name}": content for name, content in files.items()}
        found.repositories["owner/model"] = Repository(files, {WEIGHTS, "tokenizer.model"})
        found.buckets["models"] = {f"llama/{name}": content for name, content in files.items()}
        yield found


def sources(remote):
    hub = {"repository": "owner/model", "revision": COMMIT, "endpoint": remote.url}
    s3 = {"bucket": "models", "prefix": "llama", "endpoint": remote.url}
    return {
        "hub": RemoteSource.model_validate({"hub": hub}),
        "s3": RemoteSource.model_validate({"s3": s3}),
        "http": web(remote, *remote.files),
    }


def import_remote(root, source, name="base", **options):
    config = import_config(root, source, name, **options)
    return run_step(config, RunContext(config, rank=0)), root / "modelimports" / name / "artifact"


def figures(directory):
    return {item.name: item.value for item in verify_artifact(directory).report}


@pytest.mark.parametrize("member", ["hub", "s3", "http"])
def test_a_model_comes_in_byte_for_byte_and_the_second_time_costs_nothing(tmp_path, remote, model, member):
    source = sources(remote)[member]
    artifact, directory = import_remote(tmp_path, source)
    for name in (WEIGHTS, "config.json", "tokenizer.model"):
        assert (directory / name).read_bytes() == (model / name).read_bytes()
    manifest = verify_artifact(directory, "Digests")
    assert manifest.inputs[f"spec.source.{member}/{WEIGHTS}"] == sha256((model / WEIGHTS).read_bytes())
    assert not (directory.parent / ".downloaded").exists()
    remote.requests.clear()
    again, second = import_remote(tmp_path, source, "again")
    assert [request.path for request in remote.requests if "list-type" not in request.path] == []
    assert again.digest == artifact.digest
    for name in (WEIGHTS, "tokenizer.model"):
        assert (second / name).stat().st_ino == (directory / name).stat().st_ino
    blob = tmp_path / STORE / "sha256" / sha256((model / WEIGHTS).read_bytes())
    assert blob.stat().st_ino == (second / WEIGHTS).stat().st_ino
    assert figures(second)["downloaded_bytes"] == "0"


def test_expected_digests_are_counted_and_a_wrong_one_is_refused(tmp_path, remote, model):
    expected = {WEIGHTS: sha256((model / WEIGHTS).read_bytes())}
    _, directory = import_remote(tmp_path, sources(remote)["s3"], sha256=expected)
    assert figures(directory)["files_with_expected_sha256"] == "1"
    _, directory = import_remote(tmp_path, sources(remote)["http"], "web")
    assert figures(directory)["files_with_expected_sha256"] == str(len(remote.files))
    with pytest.raises(BadInput, match=f"{WEIGHTS} has the SHA-256"):
        import_remote(tmp_path / "other", sources(remote)["s3"], sha256={WEIGHTS: "0" * 64})


def test_a_gguf_file_is_converted_and_without_keep_downloads_nothing_of_it_stays(tmp_path, remote):
    root = tmp_path / "gguf"
    tiny = tiny_llama(root / "model", tiny_chatml_tokenizer(root / "tokenizer"))
    remote.files = {"/tiny.gguf": write_gguf(root / "tiny.gguf", tiny).read_bytes()}
    claim = tmp_path / "claim"
    _, directory = import_remote(claim, web(remote, "/tiny.gguf"), keep_downloads=False)
    assert (directory / WEIGHTS).is_file()
    assert list((claim / STORE / "sha256").iterdir()) == []


def test_the_bar_never_goes_back_when_the_download_is_over(tmp_path, remote):
    config = import_config(tmp_path, sources(remote)["http"])
    run = RunContext(config, rank=0)
    shares = []
    report = run.report

    def listen(**said):
        report(**said)
        shares.append(said.get("done"))

    run.report = listen
    run_step(config, run)
    told = [share for share in shares if share is not None]
    assert told == sorted(told)
    assert told[-1] == 1.0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_ended_in_the_middle_leaves_its_bytes_to_the_next_attempt(tmp_path, remote, model, number):
    content = (model / WEIGHTS).read_bytes()
    source, ended = sources(remote)["http"], threading.Event()
    remote.faults[f"/m/{WEIGHTS}"] = [Fault(hook=lambda: ended.wait(60))]
    config = tmp_path / "job.json"
    config.write_text(import_config(tmp_path, source).model_dump_json(by_alias=True))
    termination = tmp_path / "termination"
    process = subprocess.Popen(
        [sys.executable, "-m", "herdsman_trainer", "--config", str(config)],
        env={**os.environ, "HERDSMAN_TERMINATION_FILE": str(termination), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )
    with process:
        kept = tmp_path / STORE / "partial" / sha256(content)
        wait_until(lambda: kept.exists() and kept.stat().st_size == len(content) // 2, "half of it is here", 60)
        process.send_signal(number)
        if number == signal.SIGKILL:
            process.wait(30)
        ended.set()
        assert process.wait(30) == (-signal.SIGKILL if number == signal.SIGKILL else 75)
    if number == signal.SIGTERM:
        assert json.loads(termination.read_text())["reason"] == "Interrupted"
    came = len(partials(tmp_path)[sha256(content)])
    assert len(content) // 2 <= came < len(content)
    assert not (tmp_path / "modelimports/base/artifact").exists()
    remote.requests.clear()
    _, directory = import_remote(tmp_path, source, attempt=2)
    assert (directory / WEIGHTS).read_bytes() == content
    assert remote.ranges(WEIGHTS) == [f"bytes={came}-"]
