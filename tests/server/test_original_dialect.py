"""Clients of the original's demonstration server: requests as its README shows them, sent as curl sends them."""

import json
import shutil
import subprocess

import pytest
import torch

from herdsman_server.transformers_engine import load_engine
from herdsman_trainer.prompts import TEMPLATES, Message
from herdsman_trainer.tokenizers import load_tokenizer
from herdsman_trainer.weights.chain import open_chain
from tiny import tiny_llama

DIALECT = "chinese-llama-alpaca"
QUESTION = "给我讲一些有关杭州的故事吧"


@pytest.fixture
def client(serve):
    return serve("好的", dialect=DIALECT, context_length=600)


def curl(client, path, body):
    """POST a body as the README's commands do: without a key and without a model."""
    if (program := shutil.which("curl")) is None:
        pytest.skip("needs curl")
    argv = [program, "-s", "--noproxy", "*", f"{client.url}{path}", "-H", "Content-Type: application/json", "-d", body]
    return json.loads(subprocess.run(argv, capture_output=True, check=True, timeout=60).stdout)


def test_a_chat_repeats_the_conversation_and_the_answer_is_the_last_choice(client, tokenizer):
    turns = [("user", QUESTION), ("assistant", "好的，请问？"), ("user", "我比较喜欢西湖")]
    messages = [{"role": role, "message": text} for role, text in turns]
    answer = curl(client, "/v1/chat/completions", json.dumps({"messages": messages, "repetition_penalty": 1.0}))
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    said = [(choice["message"]["role"], choice["message"]["content"]) for choice in answer["choices"]]
    assert said == [*turns, ("assistant", "好的")]
    prompt, _, _ = client.engine.calls[0]
    assert prompt == TEMPLATES["alpaca"].chat_ids(tokenizer, [Message(*turn) for turn in turns])


def test_a_prompt_is_an_instruction(client, tokenizer):
    body = {"prompt": "告诉我中国的首都在哪里", "max_tokens": 90, "temperature": 0.7, "num_beams": 4, "top_k": 40}
    answer = curl(client, "/v1/completions", json.dumps(body))
    assert (answer["object"], answer["id"][:5]) == ("text_completion", "cmpl-")
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [(0, "好的")]
    prompt, sampling, _ = client.engine.calls[0]
    assert prompt == TEMPLATES["alpaca"].source_ids(tokenizer, body["prompt"])
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (90, 0.7, 0.75)


@pytest.mark.parametrize(
    ("template", "path", "expected"),
    [
        ("alpaca", "/v1/chat/completions", (0.7, 1.0, 40, 128, 1.0)),
        ("alpaca", "/v1/completions", (0.1, 0.75, 40, 128, 1.0)),
        ("llama-2", "/v1/chat/completions", (0.2, 0.9, 40, 512, 1.1)),
        ("llama-2", "/v1/completions", (0.2, 0.9, 40, 512, 1.1)),
    ],
)
def test_the_defaults_are_those_of_the_generation(serve, template, path, expected):
    client = serve("a", dialect=DIALECT, template=template, context_length=2000)
    body = {"messages": "x"} if "chat" in path else {"prompt": "x"}
    assert client.http.post(path, json=body).status_code == 200
    used = client.engine.calls[0][1]
    assert (used.temperature, used.top_p, used.top_k, used.max_tokens, used.repetition_penalty) == expected


def test_messages_may_be_one_string_and_newer_clients_say_content(client):
    bodies = [{"messages": QUESTION}, {"messages": [{"role": "user", "content": QUESTION}]}]
    for body in bodies:
        choices = client.http.post("/v1/chat/completions", json=body).json()["choices"]
        assert choices[0]["message"] == {"role": "user", "content": QUESTION}
        assert choices[-1]["message"] == {"role": "assistant", "content": "好的"}


def test_a_stream_has_the_answer_only(client):
    body = {"messages": QUESTION, "stream": True}
    with client.http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == "好的"
    assert lines[-1] == "[DONE]"


def test_fields_the_original_ignores_and_other_models_names_change_nothing(client):
    ignored = {"n": 3, "stop": ["好"], "user": "me", "logprobs": 2, "echo": True, "model": "gpt-3.5-turbo"}
    choices = client.http.post("/v1/completions", json={"prompt": "x", **ignored}).json()["choices"]
    assert [choice["text"] for choice in choices] == ["好的"]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "content: Field required"),
        ("/v1/chat/completions", {"messages": "x", "temperature": 9}, "temperature: Input should be less than"),
        ("/v1/completions", {}, "prompt: Field required"),
    ],
)
def test_what_makes_no_sense_is_refused(client, path, body, says):
    response = client.http.post(path, json=body)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]


def test_embeddings_of_a_list_are_rows_of_one(serve, tmp_path):
    model = tiny_llama(tmp_path / "model")
    engine = load_engine(open_chain(model, dtype=torch.float32), "cpu")
    client = serve(engine=engine, used=load_tokenizer(model), dialect=DIALECT)
    one = curl(client, "/v1/embeddings", json.dumps({"input": "今天天气真不错"}))
    assert (one["object"], [each["index"] for each in one["data"]]) == ("list", [0])
    many = curl(client, "/v1/embeddings", json.dumps({"input": ["今天天气真不错", "a"]}))
    assert [each["index"] for each in many["data"]] == [0]
    rows = many["data"][0]["embedding"]
    assert len(rows) == 2
    assert rows[0] == pytest.approx(one["data"][0]["embedding"], abs=1e-5)
