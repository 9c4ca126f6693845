"""`herdsman run` with a real server of a tiny model, which an InstructionSet asks for records."""

import asyncio
import json
import socket
import sys

import pytest

from builders import manifest
from shells.homes import Play, phases, status_of
from tiny import tiny_llama
from waiting import wait_until


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def play(tmp_path, monkeypatch):
    monkeypatch.setenv("HERDSMAN_API_KEY", "sk-of-the-server")
    home = Play(tmp_path)
    home.python = sys.executable
    yield home
    home.cluster.kill()
    for server in home.cluster.servers.records():
        home.cluster.servers.kill(server)
    wait_until(lambda: not home.cluster.running_jobs(), "all processes have ended")


def test_a_set_waits_for_the_server_of_the_same_run_asks_it_with_its_key_and_keeps_what_it_says(play, port):
    config = tiny_llama(play.texts / "model", hidden_size=16) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 2048}))
    server = manifest(
        "ModelServer",
        "teacher",
        {
            "model": {"volume": {"claim": "corpora", "path": "model"}},
            "port": port,
            "template": "alpaca",
            "apiKey": {"secret": {"name": "teacher", "key": "api"}},
        },
    )
    records = manifest(
        "InstructionSet",
        "made",
        {
            "generate": {
                "endpoint": {"modelServer": "teacher"},
                "records": 2,
                "recordsPerRequest": 1,
                "inputCharacters": {"least": 1, "most": 1},
                "outputCharacters": {"least": 4, "most": 8},
                "domains": ["茶"],
                "taskKinds": ["问答"],
                "temperaturePercent": 150,
                "limits": {"parallel": 1},
            },
            "clean": {
                "languagePercent": 0,
                "longestInstruction": 12,
                "rougePercent": 100,
                "minhashPercent": 100,
            },
        },
    )
    play.apply(records, server)
    ending = asyncio.run(asyncio.wait_for(play.follower().run(), 120))
    assert phases(ending) == {"made": "Succeeded", "teacher": "Ready"}, status_of(ending, "made").failure
    status = status_of(ending, "made")
    artifact = play.workspace("instructionsets", "made", "is-made") / "artifact"
    lines = (artifact / "train" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert all(set(json.loads(line)) == {"instruction", "input", "output"} for line in lines)
    assert {figure.name: figure.value for figure in status.report}["kind 问答"] == "2"
    assert status.artifact.kind == "dataset"
    waited = [phase for name, phase in play.listener.heard if name == "made"]
    assert waited[0] == "Waiting"
