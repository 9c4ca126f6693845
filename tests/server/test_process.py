"""The process: opens the port, loads, answers, and ends with the exit codes of the contract."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest

from herdsman.api.job_config import ServerConfig
from herdsman_server.__main__ import main
from run_configs import owner, source
from tiny import tiny_llama
from waiting import wait_until


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model"), hidden_size=16)


def write_config(directory, model, port, **options):
    config = ServerConfig(
        owner=owner(kind="ModelServer"),
        model=source(model),
        model_name="demo",
        host="127.0.0.1",
        port=port,
        **options,
    )
    (directory / "server.json").write_text(config.model_dump_json(by_alias=True))
    return directory / "server.json"


@pytest.fixture
def process(tmp_path, model, request):
    """A server process; killed at the end of the test if it still runs."""
    port = free_port()
    config = write_config(tmp_path, model, port, **getattr(request, "param", {}))
    command = [sys.executable, "-m", "herdsman_server", "--config", str(config)]
    environment = {**os.environ, "HERDSMAN_TERMINATION_FILE": str(tmp_path / "termination"), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        process.url = f"http://127.0.0.1:{port}"
        yield process
        process.kill()
        process.wait()


def answers(url):
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("process", [{"accept_seconds": 3600}], indirect=True)
def test_a_server_becomes_ready_answers_and_ends_gracefully_while_a_stream_runs(process, tmp_path):
    wait_until(lambda: answers(f"{process.url}/readyz"), "the model is loaded", seconds=120)
    assert answers(f"{process.url}/healthz")
    with openai.OpenAI(base_url=f"{process.url}/v1", api_key="none") as client:
        stream = client.completions.create(
            model="demo", prompt="The river", max_tokens=150, stream=True, extra_body={"repetition_penalty": 2.0}
        )
        next(iter(stream))
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not answers(f"{process.url}/readyz"), "it says that it stops")
        assert answers(f"{process.url}/healthz"), "and goes on for now"
        process.send_signal(signal.SIGTERM)
        reasons = [chunk.choices[0].finish_reason for chunk in stream]
    assert reasons[-1] in ("stop", "length")
    log = (tmp_path / "log").read_text()
    assert process.wait(timeout=60) == 0, log
    assert not (tmp_path / "termination").exists()
    assert "Ready: demo answers" in log
    assert "Traceback" not in log


ACCEPT_SECONDS = 2


def ask(client, *, stream):
    """Ask once; returns what is wrong with the answer, or None."""
    body = {"model": "demo", "prompt": "The river", "max_tokens": 12, "stream": stream}
    try:
        reply = client.post("/v1/completions", json=body)
        whole = reply.text.endswith("data: [DONE]\n\n") if stream else reply.json()["choices"][0]["finish_reason"]
    except httpx.HTTPError as error:
        return repr(error)
    return None if reply.status_code == 200 and whole and '"error"' not in reply.text else reply.text


def keep_asking(url, *, stream, until, told):
    """Ask again and again over kept connections; tells (when it was asked, what was wrong)."""
    with httpx.Client(base_url=url, timeout=60) as client:
        while not until():
            asked = time.monotonic()
            told.append((asked, ask(client, stream=stream)))


@pytest.mark.parametrize("process", [{"accept_seconds": ACCEPT_SECONDS}], indirect=True)
def test_stopped_under_load_no_request_is_lost(process, tmp_path):
    wait_until(lambda: answers(f"{process.url}/readyz"), "the model is loaded", seconds=120)
    told, stopped = [], []

    def the_cluster_has_heard():
        """Half of the time that is granted for it is over."""
        return bool(stopped) and time.monotonic() > stopped[0] + ACCEPT_SECONDS / 2

    load = [
        threading.Thread(
            target=keep_asking,
            args=(process.url,),
            kwargs={"stream": stream, "until": the_cluster_has_heard, "told": told},
        )
        for stream in (True, False, True, False)
    ]
    for thread in load:
        thread.start()
    wait_until(lambda: len(told) > 20, "there is load")
    stopped.append(time.monotonic())
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: not answers(f"{process.url}/readyz"), "it says that it stops")
    for thread in load:
        thread.join(timeout=60)
    log = (tmp_path / "log").read_text()
    assert [wrong for _, wrong in told if wrong] == [], log
    assert sum(asked > stopped[0] for asked, _ in told) > 4, "it was asked after the signal, and answered"
    assert process.wait(timeout=60) == 0, log
    assert "SIGTERM: requests are accepted for another 2 s" in log
    assert "Traceback" not in log


@pytest.fixture
def end(tmp_path, monkeypatch, capsys):
    """Run the server in this process until it ends by itself; returns exit code and termination message."""
    monkeypatch.setenv("HERDSMAN_TERMINATION_FILE", str(tmp_path / "termination"))

    def run(config):
        code = main(["--config", str(config)])
        assert "Traceback" not in capsys.readouterr().err
        return code, json.loads((tmp_path / "termination").read_text())

    return run


def test_a_model_that_cannot_be_served_ends_with_42_and_the_reason(end, tmp_path):
    code, message = end(write_config(tmp_path, tmp_path / "nothing", free_port()))
    assert code == 42
    assert (message["reason"], message["file"]) == ("BadInput", str(tmp_path / "nothing"))
    assert "spec.model names nothing" in message["message"]


def test_a_port_that_is_taken_ends_with_75_and_the_remedy(end, tmp_path, model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, message = end(write_config(tmp_path, model, port))
    assert code == 75
    assert f"port {port}" in message["message"]
    assert "another spec.port" in message["hint"]


@pytest.mark.parametrize(
    ("content", "says"), [(None, "cannot be read"), ("{", "Invalid JSON"), ('{"kind": "ModelServer"}', "owner")]
)
def test_a_configuration_that_is_wrong_ends_with_42_and_the_field(end, tmp_path, content, says):
    path = tmp_path / "server.json"
    if content:
        path.write_text(content)
    code, message = end(path)
    assert (code, message["file"]) == (42, str(path))
    assert says in message["message"]


METRICS = free_port()


@pytest.mark.parametrize("process", [{"metrics_port": METRICS}], indirect=True)
def test_the_start_is_measured_and_the_metrics_have_a_port_of_their_own(process, tmp_path):
    wait_until(lambda: answers(f"{process.url}/readyz"), "the model is loaded", seconds=120)
    text = httpx.get(f"http://127.0.0.1:{METRICS}/metrics").text
    seconds = dict(re.findall(r'herdsman_server_startup_seconds{phase="(\w+)"} (\S+)', text))
    assert set(seconds) == {"import", "open", "load", "first_token"}
    assert all(float(value) > 0 for value in seconds.values())
    assert "herdsman_server_ready 1.0" in text
    assert httpx.get(f"{process.url}/metrics").status_code == 404
    log = (tmp_path / "log").read_text()
    assert re.search(r"Ready: demo answers on port \d+ \(import .* s, open .* s, load .* s, first token .* s\)", log)


def test_the_port_of_the_metrics_that_is_taken_is_named(end, tmp_path, model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, message = end(write_config(tmp_path, model, free_port(), metrics_port=port))
    assert code == 75
    assert f"port {port}" in message["message"]
    assert "another spec.metricsPort" in message["hint"]


def test_weights_that_do_not_fit_into_memory_are_told_before_they_are_loaded(end, tmp_path, model, monkeypatch):
    monkeypatch.setattr("herdsman_server.startup.memory_limit", lambda: 1000)
    code, message = end(write_config(tmp_path, model, free_port()))
    assert (code, message["reason"]) == (75, "OutOfMemory")
    assert "GiB is all there is" in message["message"]
    assert "compute.resources.memory" in message["hint"]


def test_a_damaged_file_is_told_by_its_name(end, tmp_path):
    damaged = tiny_llama(tmp_path / "model", hidden_size=16)
    weights = next(damaged.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    code, message = end(write_config(tmp_path, damaged, free_port()))
    assert (code, message["reason"]) == (42, "BadInput")
    assert weights.name in message["file"] + message["message"]
