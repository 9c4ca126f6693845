"""The process: opens the port, loads, answers, and ends with the exit codes of the contract."""

import json
import os
import signal
import socket
import subprocess
import sys

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


def write_config(directory, model, port):
    config = ServerConfig(
        owner=owner(kind="ModelServer"), model=source(model), model_name="demo", host="127.0.0.1", port=port
    )
    (directory / "server.json").write_text(config.model_dump_json(by_alias=True))
    return directory / "server.json"


@pytest.fixture
def process(tmp_path, model):
    """A server process; killed at the end of the test if it still runs."""
    port = free_port()
    command = [sys.executable, "-m", "herdsman_server", "--config", str(write_config(tmp_path, model, port))]
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


def test_a_server_becomes_ready_answers_and_ends_gracefully_while_a_stream_runs(process, tmp_path):
    wait_until(lambda: answers(f"{process.url}/readyz"), "the model is loaded", seconds=120)
    assert answers(f"{process.url}/healthz")
    with openai.OpenAI(base_url=f"{process.url}/v1", api_key="none") as client:
        stream = client.completions.create(
            model="demo", prompt="The river", max_tokens=150, stream=True, extra_body={"repetition_penalty": 2.0}
        )
        next(iter(stream))
        process.send_signal(signal.SIGTERM)
        reasons = [chunk.choices[0].finish_reason for chunk in stream]
    assert reasons[-1] in ("stop", "length")
    log = (tmp_path / "log").read_text()
    assert process.wait(timeout=60) == 0, log
    assert not (tmp_path / "termination").exists()
    assert "Ready: demo answers" in log
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
