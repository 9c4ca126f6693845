"""What clients write is never logged, never run, and never a control token."""

import json
import logging

import pytest

from herdsman_server import answers, completions
from waiting import wait_until

PHRASE = "the heron keeps the ninth key"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture
def logged(caplog, capfd):
    """Everything that was logged or printed."""
    caplog.set_level(logging.DEBUG)

    def everything():
        printed = capfd.readouterr()
        return "\n".join([caplog.text, printed.out, printed.err, *(repr(record.args) for record in caplog.records)])

    return everything


def asked(client, **more):
    body = {"model": "demo", "messages": [{"role": "user", "content": PHRASE}], **more}
    return client.http.post(CHAT, json=body)


def test_nothing_of_a_prompt_is_logged_when_it_is_answered_refused_or_not_understood(serve, logged):
    client = serve(PHRASE, keys=["a"], context_length=600, prompt_tokens=500)
    assert asked(client).status_code == 401
    client.http.headers["Authorization"] = "Bearer a"
    assert asked(client).json()["choices"][0]["message"]["content"] == PHRASE
    assert asked(client, stream=True).text.endswith("data: [DONE]\n\n")
    assert asked(client, temperature=PHRASE).status_code == 400
    assert asked(client, **{PHRASE: 1}).status_code == 400
    assert asked(client, model=PHRASE).status_code == 404
    assert client.http.post(TEXT, json={"model": "demo", "prompt": PHRASE * 30}).status_code == 400
    assert client.http.post(CHAT, content=f'{{"model": "{PHRASE}').status_code == 400
    assert client.http.get(f"/v1/{PHRASE}").status_code == 404
    assert PHRASE not in logged()


@pytest.mark.parametrize("stream", [True, False])
def test_nothing_of_a_prompt_is_logged_when_the_engine_fails(serve, logged, stream):
    client = serve(PHRASE)
    client.engine.fail_after = 3
    reply = asked(client, stream=stream)
    assert "The engine failed" in reply.text
    assert PHRASE not in reply.text
    log = logged()
    assert "the matrix is not amused" in log, "the engine's own words help"
    assert PHRASE not in log


def test_nothing_of_a_prompt_is_logged_when_the_client_leaves(serve, logged):
    client = serve(PHRASE)
    client.engine.hold_at = 2
    body = {"model": "demo", "messages": [{"role": "user", "content": PHRASE}], "stream": True}
    with client.http.stream("POST", CHAT, json=body) as stream:
        next(stream.iter_lines())
    wait_until(lambda: client.state.streams == 0, "it is noticed")
    client.engine.go_on.set()
    assert PHRASE not in logged()


def test_nothing_of_a_prompt_is_logged_when_the_server_itself_fails(serve, logged, monkeypatch):
    def fail(served, limits, body):
        raise LookupError(f"no idea what to do with {body.messages[0].text}")

    monkeypatch.setattr(completions, "wanted_generations", fail)
    client = serve(PHRASE)
    reply = asked(client)
    assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")
    assert PHRASE not in reply.text
    log = logged()
    assert "POST /v1/chat/completions failed with LookupError" in log
    assert "in fail" in log, "it says where"
    assert PHRASE not in log


def test_nothing_of_a_prompt_is_logged_when_a_stream_fails_midway(serve, logged, monkeypatch):
    def fail(body):
        raise LookupError(f"no idea what to do with {PHRASE}")

    monkeypatch.setattr(answers, "sse", fail)
    client = serve(PHRASE)
    reply = asked(client, stream=True)
    assert json.loads(reply.text.splitlines()[0].removeprefix("data: "))["error"]["type"] == "server_error"
    log = logged()
    assert "failed with LookupError" in log
    assert PHRASE not in log


TEMPLATES = [
    "{{ 7 * 7 }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{0.__class__} {instruction} {input} %s %(message)s ${HOME} $(HOME)",
    "### Response:\n\n### Instruction:",
    "{'role': 'system'}",
]


@pytest.mark.parametrize("template", ["alpaca", "llama-2"])
@pytest.mark.parametrize("text", TEMPLATES)
def test_what_looks_like_a_template_stays_text(serve, tokenizer, text, template):
    client = serve("a b", template=template, context_length=2000)
    client.chat(text)
    prompt = client.engine.calls[0][0]
    assert text in tokenizer.decode(prompt)
    assert "49" not in tokenizer.decode(prompt)


CONTROL = ["<s>", "</s>", "<unk>", "<|eot_id|>", "<|im_start|>system", "[INST]", "<<SYS>>"]


@pytest.mark.parametrize("text", CONTROL)
@pytest.mark.parametrize("route", [CHAT, TEXT])
def test_what_looks_like_a_control_token_is_text(serve, tokenizer, text, route):
    client = serve("a b", context_length=2000)
    plain, marked = "x y", f"x {text} y"
    for words in (plain, marked):
        said = {"prompt": words} if route == TEXT else {"messages": [{"role": "user", "content": words}]}
        assert client.http.post(route, json={"model": "demo", **said}).status_code == 200
    controls = {index for token in CONTROL if (index := tokenizer.control_id(token)) is not None}
    assert tokenizer.eos_id in controls
    first, second = (sum(token in controls for token in call[0]) for call in client.engine.calls)
    assert first == second, "the marked text has no more control tokens than the plain one"
    assert text in tokenizer.decode(client.engine.calls[1][0])


def test_whole_characters_written_as_two_escapes_are_taken(serve):
    client = serve()
    body = b'{"model": "demo", "prompt": "\\ud83d\\ude00"}'
    assert client.http.post(TEXT, content=body, headers={"Content-Type": "application/json"}).status_code == 200


BAD = {
    "nothing": b"",
    "no JSON": b"{",
    "no object": b"[1]",
    "null": b"null",
    "not UTF-8": b'{"model": "\xff"}',
    "half a character": b'{"model": "demo", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "half a character, encoded": b'{"model": "demo", "prompt": "\xed\xa0\x80"}',
    "half a character in UTF-16": '{"model": "demo", "prompt": "\ud800"}'.encode("utf-16-le", "surrogatepass"),
    "nested without end": b"[" * 200_000,
    "an endless number": b'{"model": "demo", "max_tokens": ' + b"9" * 10_000 + b"}",
    "no number": b'{"model": "demo", "temperature": NaN, "messages": [{"role": "user", "content": "x"}]}',
    "the same field twice": b'{"model": "demo", "model": 1, "messages": []}',
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("route", [CHAT, TEXT])
def test_a_body_that_is_no_request_is_refused_in_the_shape_of_openai(serve, logged, what, route):
    client = serve()
    reply = client.http.post(route, content=BAD[what], headers={"Content-Type": "application/json"})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert "Traceback" not in logged()
    assert client.engine.calls == []
