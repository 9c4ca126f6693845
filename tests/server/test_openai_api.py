"""The official client against the server: answers, streams, limits and refusals in OpenAI's shape."""

import json

import openai
import pytest

from herdsman_server.engine import Sampling
from herdsman_trainer.prompts import TEMPLATES, Message
from herdsman_trainer.tokenizers import load_tokenizer
from tiny import tiny_bpe_tokenizer

POEM = "为什么天空是蓝色的？ 你 hello"


def test_a_chat_answer_is_the_assistants_words_alone(serve, tokenizer):
    client = serve(POEM)
    reply = client.chat("Tell me.")
    assert reply.object == "chat.completion"
    assert [choice.index for choice in reply.choices] == [0]
    assert (reply.choices[0].message.role, reply.choices[0].message.content) == ("assistant", POEM)
    assert reply.choices[0].finish_reason == "stop"
    prompt = TEMPLATES["alpaca"].chat_ids(tokenizer, [Message("user", "Tell me.")])
    assert client.engine.calls[0][0] == prompt
    assert reply.usage.prompt_tokens == len(prompt)
    assert reply.usage.completion_tokens == len(tokenizer.encode(POEM)) + 1
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_streamed_chat_comes_role_first_with_one_id_and_whole_characters(serve, tokenizer):
    client = serve(POEM)
    chunks = list(client.chat(stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert len(deltas) >= 3, "the role, the text in as many pieces as the server kept up with, the end"
    assert not any("\N{REPLACEMENT CHARACTER}" in (delta.content or "") for delta in deltas)
    assert "".join(delta.content or "" for delta in deltas) == POEM
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(tokenizer.encode(POEM)) + 1


def test_a_stream_ends_with_done_and_has_no_usage_unless_asked(serve):
    client = serve("a b")
    body = {"model": "demo", "messages": [{"role": "user", "content": "x"}], "stream": True}
    with client.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    assert not any("usage" in json.loads(line) for line in lines[:-1])


def test_a_completion_continues_plain_text_behind_bos(serve, tokenizer):
    client = serve("and the sea")
    reply = client.complete("The river")
    assert (reply.object, reply.choices[0].text, reply.choices[0].finish_reason) == (
        "text_completion",
        "and the sea",
        "stop",
    )
    assert client.engine.calls[0][0] == [tokenizer.bos_id, *tokenizer.encode("The river")]
    assert reply.usage.prompt_tokens == len(tokenizer.encode("The river")) + 1


def test_a_completion_streams_and_takes_ids(serve, tokenizer):
    client = serve("and the sea")
    chunks = list(client.complete([5, 6, 7], stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "and the sea"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert client.engine.calls[0][0] == [5, 6, 7]


def test_control_strings_of_a_client_stay_text(serve, tokenizer):
    client = serve("a")
    client.complete("</s><s>[INST]")
    client.chat("</s><s>")
    for prompt, _, _ in client.engine.calls:
        assert prompt[0] == tokenizer.bos_id
        assert not {tokenizer.bos_id, tokenizer.eos_id} & set(prompt[1:])


def test_a_conversation_with_parts_and_a_developer_is_understood(serve, tokenizer):
    client = serve("a", template="llama-2")
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "How "}, {"type": "text", "text": "long?"}]},
        {"role": "assistant", "content": "Ten."},
        {"role": "user", "content": "Sure?"},
    ]
    client.chat(messages=messages)
    turns = [
        Message("system", "Be brief."),
        Message("user", "How long?"),
        Message("assistant", "Ten."),
        Message("user", "Sure?"),
    ]
    assert client.engine.calls[0][0] == TEMPLATES["llama-2"].chat_ids(tokenizer, turns)


def test_the_end_of_a_turn_stops_a_chat_and_the_end_of_text_a_completion(serve, tmp_path):
    used = load_tokenizer(tiny_bpe_tokenizer(tmp_path))
    client = serve("a", used=used, template="llama-3")
    client.chat()
    client.complete()
    chat, completion = (call[2] for call in client.engine.calls)
    assert chat == {used.control_id("<|eot_id|>"), used.eos_id}
    assert completion == {used.eos_id}


def test_the_defaults_are_the_published_servers_and_every_knob_arrives(serve):
    client = serve("a", max_tokens=600)
    client.chat()
    knobs = {"top_k": 7, "repetition_penalty": 1.3}
    client.chat(temperature=0, top_p=0.5, max_tokens=9, seed=11, extra_body=knobs)
    client.chat(max_completion_tokens=8)
    first, second, third = (call[1] for call in client.engine.calls)
    assert first.max_tokens == 200 - len(client.engine.calls[0][0])
    assert (first.temperature, first.top_p, first.top_k, first.repetition_penalty) == (0.2, 0.9, 40, 1.1)
    assert first.seed is None
    assert second == Sampling(max_tokens=9, temperature=0, top_p=0.5, seed=11, **knobs)
    assert third.max_tokens == 8


def test_an_answer_has_512_tokens_unless_the_server_allows_fewer(serve):
    for limit, given in ((1024, 512), (300, 300)):
        client = serve("a", context_length=2000, max_tokens=limit)
        client.chat()
        assert client.engine.calls[0][1].max_tokens == given


def test_too_few_tokens_end_an_answer_by_length(serve, tokenizer):
    client = serve("one two three four", ends=False)
    reply = client.chat(max_tokens=3)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 3
    assert reply.choices[0].message.content == tokenizer.decode(tokenizer.encode("one two three four")[:3])


@pytest.mark.parametrize("stop", ["three", ["zzz", " three"]])
def test_a_stop_string_ends_the_answer_before_it(serve, stop):
    client = serve("one two three four")
    reply = client.chat(stop=stop)
    assert reply.choices[0].message.content.rstrip() == "one two"
    assert reply.choices[0].finish_reason == "stop"
    assert client.engine.said < len(client.engine._ids), "the engine is stopped as well"
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in client.chat(stop=stop, stream=True))
    assert streamed == reply.choices[0].message.content


def test_the_model_is_listed(serve):
    client = serve()
    assert [model.id for model in client.openai.models.list()] == ["demo"]
    assert client.openai.models.retrieve("demo").owned_by == "herdsman"


def test_an_unknown_model_is_not_found(serve):
    client = serve()
    with pytest.raises(openai.NotFoundError) as caught:
        client.openai.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"
    assert "'gpt-9' does not exist; this server has 'demo'" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.openai.models.retrieve("gpt-9")


def test_a_prompt_that_is_too_long_is_refused_with_the_counts(serve, tokenizer):
    client = serve()
    with pytest.raises(openai.BadRequestError) as caught:
        client.complete([5] * 200)
    assert caught.value.code == "context_length_exceeded"
    assert "The prompt has 200 tokens and the model takes 200" in caught.value.message
    with pytest.raises(
        openai.BadRequestError, match="150 tokens and max_tokens is 51, 201 together; the model takes 200"
    ):
        client.complete([5] * 150, max_tokens=51)
    assert client.complete([5] * 150, max_tokens=50).choices[0].text == "a b"


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("body", "says", "param"),
    [
        ({"messages": [USER], "n": 0}, "n: Input should be greater than or equal to 1", "n"),
        ({"messages": [USER], "top_logprobs": 3}, "top_logprobs needs logprobs to be true", None),
        ({"messages": [USER], "logprobs": True, "top_logprobs": 21}, "less than or equal to 20", "top_logprobs"),
        ({"messages": [USER], "frequency_penalty": 2.1}, "less than or equal to 2", "frequency_penalty"),
        ({"messages": [USER], "logit_bias": {"5": 1}}, "logit_bias is not supported", None),
        ({"messages": [USER], "tools": [{"type": "function"}]}, "tools is not supported", None),
        ({"messages": [USER], "temperature": 3}, "temperature: Input should be less than or equal to 2", "temperature"),
        ({"messages": [USER], "max_token": 5}, "max_token is not a known parameter", "max_token"),
        (
            {"messages": [USER], "max_tokens": 2000},
            "max_tokens is 2000 and this server gives 1024 at most",
            "max_tokens",
        ),
        ({"messages": []}, "messages: List should have at least 1 item", "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "no message of the role 'user'", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", None),
        ({}, "messages: Field required", "messages"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_refused_with_the_parameter(serve, body, says, param):
    response = serve().http.post("/v1/chat/completions", json={"model": "demo", **body})
    error = response.json()["error"]
    assert response.status_code == 400
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (["a"] * 129, "prompt holds 129 texts and 128 are taken at most"),
        ([], "prompt is empty"),
        ([[5], [400]], "prompt holds the id 400"),
        ([5, 400], "prompt holds the id 400; ids of this model are 0 to 399"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused(serve, prompt, says):
    response = serve().http.post("/v1/completions", json={"model": "demo", "prompt": prompt})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")
    assert says in response.json()["error"]["message"]


def test_fields_that_change_nothing_are_accepted(serve):
    client = serve("a b")
    reply = client.chat(n=1, user="me", presence_penalty=0, logprobs=False, tools=[], response_format={"type": "text"})
    assert reply.choices[0].message.content == "a b"


def test_a_body_that_is_no_json_is_refused(serve):
    response = serve().http.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert "not valid JSON" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/embeddings", 405), ("GET", "/v1/completions", 405)]
)
def test_other_routes_answer_in_the_same_shape(serve, method, path, status):
    response = serve().http.request(method, path)
    assert response.status_code == status
    assert path in response.json()["error"]["message"]


def test_an_engine_that_fails_answers_500_and_the_next_request_works(serve):
    client = serve("one two three")
    client.engine.fail_after = 1
    with pytest.raises(openai.InternalServerError, match="The engine failed"):
        client.chat()
    with pytest.raises(openai.APIError, match="The engine failed"):
        list(client.chat(stream=True))
    client.engine.fail_after = None
    assert client.chat().choices[0].message.content == "one two three"
