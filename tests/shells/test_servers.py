"""Servers on one machine: kept processes behind a port."""

import json
import os
import signal
import socket

import pytest

from builders import manifest
from herdsman.local.history import headline
from shells.homes import model_import, phases, server, status_of


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def pid_of(play):
    (record,) = play.cluster.servers.records()
    state = play.cluster.servers.state(record)
    return state.pid if state is not None and state.running else None


def test_a_server_is_ready_once_it_answers_and_stays_after_the_run(play, port):
    play.apply(model_import(), server(port=port))
    ending = play.follow()
    assert phases(ending) == {"base": "Succeeded", "chat": "Ready"}
    assert status_of(ending, "chat").url == f"http://127.0.0.1:{port}/v1"
    before = pid_of(play)
    play.fresh_cluster()
    assert phases(play.follow())["chat"] == "Ready"
    assert pid_of(play) == before is not None


def test_a_changed_configuration_replaces_the_process(play, port):
    play.apply(model_import(), server(port=port))
    play.follow()
    before = pid_of(play)
    # An upgrade of Herdsman, or a model made anew, changes the configuration of a server whose manifest stays.
    path = play.home.resources / "ModelServer" / "chat.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "spec": {**stored["spec"], "modelName": "other"}}))
    play.fresh_cluster()
    assert phases(play.follow())["chat"] == "Ready"
    assert pid_of(play) not in (before, None)


def test_a_changed_manifest_replaces_the_process_and_leaves_no_configuration_behind(play, port):
    play.apply(model_import(), model_import("next"), server(port=port))
    play.follow()
    before = pid_of(play)
    play.fresh_cluster()
    changed = server(port=port, model={"modelImport": "next"}, modelName="other")
    assert play.apply(model_import(), model_import("next"), changed)["chat"].action == "updated"
    assert phases(play.follow())["chat"] == "Ready"
    assert pid_of(play) not in (before, None)
    (config,) = play.home.configs.glob("ms-*.json")
    assert json.loads(config.read_text())["modelName"] == "other"


def test_what_only_matters_on_a_cluster_does_not_disturb_the_process(play, port):
    play.apply(model_import(), server(port=port))
    play.follow()
    before = pid_of(play)
    play.fresh_cluster()
    extras = {
        "ingress": {"host": "a.b"},
        "autoscaling": {"minReplicas": 2, "maxReplicas": 3, "targetWaitingRequests": 1},
    }
    play.apply(model_import(), server(port=port, **extras))
    ending = play.follow()
    assert (phases(ending)["chat"], pid_of(play)) == ("Ready", before)
    told = next(item.message for item in status_of(ending, "chat").conditions if item.type == "Progressing")
    assert "The Ingress ms-chat was not made: herdsman run has no such thing" in told


def test_a_change_that_waits_for_a_failed_model_leaves_the_process_and_ends_the_run(play, port):
    play.behave(next=[42])
    play.apply(model_import(), server(port=port))
    play.follow()
    before = pid_of(play)
    play.fresh_cluster()
    play.apply(model_import(), model_import("next"), server(port=port, model={"modelImport": "next"}))
    ending = play.follow()
    assert phases(ending) == {"base": "Succeeded", "next": "Failed", "chat": "Waiting"}
    assert pid_of(play) == before
    ready = next(item for item in status_of(ending, "chat").conditions if item.type == "Ready")
    assert ready.status == "True"


KEY = {"apiKey": {"secret": {"name": "chat-keys", "key": "api"}}}


def test_a_key_is_taken_from_the_environment_and_asked_for_where_it_is_not(play, port, monkeypatch):
    monkeypatch.delenv("HERDSMAN_API_KEY", raising=False)
    play.apply(model_import(), server(port=port, **KEY))
    ending = play.follow()
    failure = status_of(ending, "chat").failure
    assert (phases(ending)["chat"], failure.reason) == ("Degraded", "SecretNotFound")
    assert "in place of the Secret chat-keys, key api, the environment has to hold HERDSMAN_API_KEY" in failure.message
    assert pid_of(play) is None, "it is not open by mistake"
    monkeypatch.setenv("HERDSMAN_API_KEY", "hunter2")
    play.fresh_cluster()
    assert phases(play.follow())["chat"] == "Ready"
    assert "hunter2" not in "".join(path.read_text() for path in play.home.root.rglob("*.json"))


def test_a_server_that_gets_a_key_is_replaced_once_the_key_is_there(play, port, monkeypatch):
    monkeypatch.delenv("HERDSMAN_API_KEY", raising=False)
    play.apply(model_import(), server(port=port))
    play.follow()
    before = pid_of(play)
    play.fresh_cluster()
    play.apply(model_import(), server(port=port, **KEY))
    assert phases(play.follow())["chat"] == "Degraded"
    assert pid_of(play) == before, "the one of before goes on meanwhile"
    monkeypatch.setenv("HERDSMAN_API_KEY", "hunter2")
    play.fresh_cluster()
    assert phases(play.follow())["chat"] == "Ready"
    assert pid_of(play) not in (before, None)


def test_a_server_that_died_is_started_again_by_the_next_run(play, port):
    play.apply(model_import(), server(port=port))
    play.follow()
    before = pid_of(play)
    os.kill(before, signal.SIGTERM)
    play.fresh_cluster()
    assert phases(play.follow())["chat"] == "Ready"
    assert pid_of(play) not in (before, None)


def test_a_server_that_always_crashes_is_given_up_and_says_so(play, port):
    play.behave(chat=["crash"])
    play.apply(model_import(), server(port=port))
    ending = play.follow()
    assert phases(ending) == {"base": "Succeeded", "chat": "Degraded"}
    log = (play.home.servers / "ms-chat" / "0.log").read_text()
    assert log.count("started") == 4
    assert "exit code 3" in status_of(ending, "chat").failure.message


def test_a_port_of_somebody_else_is_named_with_the_remedy(play):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        play.apply(model_import(), server(port=taken))
        ending = play.follow()
    assert phases(ending)["chat"] == "Degraded"
    message = headline(status_of(ending, "chat")).message
    assert f"another process listens on port {taken}" in message
    assert "spec.port" in message


def test_no_replicas_stop_the_server_and_some_start_it(play, port):
    play.apply(model_import(), server(port=port))
    play.follow()
    play.fresh_cluster()
    assert play.apply(model_import(), server(port=port, replicas=0))["chat"].action == "updated"
    assert phases(play.follow())["chat"] == "Suspended"
    assert pid_of(play) is None
    play.fresh_cluster()
    play.apply(model_import(), server(port=port, replicas=2))
    assert phases(play.follow())["chat"] == "Ready"


def test_a_server_waits_for_its_model(play, port):
    play.behave(base=[42])
    play.apply(manifest("ModelServer", "chat", {"model": {"modelImport": "base"}, "port": port}), model_import())
    ending = play.follow()
    assert phases(ending) == {"base": "Failed", "chat": "Waiting"}
    assert not play.cluster.servers.records()


def test_hot_adapters_are_a_file_that_the_process_watches_and_what_it_says_of_them_another(play, port):
    play.apply(model_import(), server(port=port, hotAdapters=[{"name": "law", "adapter": {"sftJob": "law"}}]))
    (told,) = status_of(play.follow(), "chat").adapters
    assert (told.name, told.loaded) == ("law", False)
    assert "there is no SFTJob law" in told.message
    (listed,) = play.home.configs.glob("ms-chat-adapters.json")
    assert json.loads(listed.read_text()) == {"adapters": []}
    report = {"adapters": [{"name": "law", "loaded": True}]}
    listed.with_name(f"{listed.name}.report").write_text(json.dumps(report))
    play.fresh_cluster()
    (told,) = status_of(play.follow(), "chat").adapters
    assert told.loaded
