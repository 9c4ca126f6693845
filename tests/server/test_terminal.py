"""The command line's client against the real gateway."""

import json

import pytest

from herdsman.cli.chat import chat_command
from herdsman.cli.chat_client import RequestRefused, Sampling, find_client
from herdsman.cli.generate import generate_command


def client_of(server, **sampling):
    return find_client(None, server.url, None, Sampling(**sampling), None)


def test_a_question_is_answered_as_it_comes(serve, capsys):
    chat_command(client_of(serve("the river flows")), "Where?", "Be brief.")
    assert capsys.readouterr().out == "the river flows\n"


@pytest.mark.parametrize("raw", [True, False])
def test_a_batch_is_answered_with_and_without_a_template(serve, tmp_path, raw):
    server = serve("the river flows", queue_length=1)  # so that some are told to come again
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n")
    options = {"system": None, "raw": raw, "parallel": 2, "overwrite": False, "skip_errors": False}
    client = client_of(server, temperature=0.0, top_k=1, max_tokens=50)
    assert generate_command(client, tmp_path / "prompts.txt", tmp_path / "out.json", **options) == 0
    assert json.loads((tmp_path / "out.json").read_text()) == [
        {"Input": line, "Output": "the river flows"} for line in ["one", "two", "three"]
    ]


def test_what_the_server_refuses_and_what_fails_within_an_answer_are_told(serve, monkeypatch):
    monkeypatch.setenv("HERDSMAN_API_KEY", "wrong")
    with pytest.raises(RequestRefused, match="401: The API key is missing or wrong"):
        client_of(serve(keys=["sesame"]))
    server = serve("a b")
    with pytest.raises(RequestRefused, match="answered 400: max_tokens"):
        list(client_of(server, max_tokens=10**6).chat([{"role": "user", "content": "Hello"}]))
    server.engine.fail_after = 1
    with pytest.raises(RequestRefused, match="gave up: The engine failed"):
        list(client_of(server).chat([{"role": "user", "content": "Hello"}]))
