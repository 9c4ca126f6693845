"""Several answers to one request: choices, prompt lists, and what they count."""

import openai
import pytest

from waiting import wait_until


class NumberedEngine:
    """Says after each prompt how it was drawn: `seed 7` for the seed 7."""

    parallel = 1
    broken = None
    context_length = 200

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.calls = []

    def generate(self, prompt, sampling, stop_ids, on_token):
        self.calls.append((list(prompt), sampling))
        text = f"{self.tokenizer.decode(prompt)} {sampling.seed}"
        for token in [*self.tokenizer.encode(text), self.tokenizer.eos_id][: sampling.max_tokens]:
            if not on_token(token):
                return


@pytest.fixture
def client(serve, tokenizer):
    return serve(engine=NumberedEngine(tokenizer))


def test_choices_share_the_prompt_and_differ_by_their_seed(client, tokenizer):
    reply = client.complete("The river", n=3, seed=7)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert [choice.text for choice in reply.choices] == ["The river 7", "The river 8", "The river 9"]
    assert {choice.finish_reason for choice in reply.choices} == {"stop"}
    prompt = 1 + len(tokenizer.encode("The river"))
    said = sum(len(tokenizer.encode(choice.text)) + 1 for choice in reply.choices)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (prompt, said)
    assert reply.usage.total_tokens == prompt + said


def test_without_a_seed_every_choice_is_drawn_anew(client):
    assert {call.text for call in client.complete("x", n=2).choices} == {"x None"}
    assert [sampling.seed for _, sampling in client.engine.calls] == [None, None]


def test_streamed_choices_say_which_they_are(client):
    chunks = list(client.complete("x", n=2, seed=1, stream=True, stream_options={"include_usage": True}))
    texts, reasons = ["", ""], [None, None]
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == ["x 1", "x 2"]
    assert reasons == ["stop", "stop"]
    assert chunks[-1].usage == client.complete("x", n=2, seed=1).usage


def test_each_choice_of_a_streamed_chat_begins_with_its_role(serve):
    chunks = [chunk.choices[0] for chunk in serve("a b").chat(n=2, stream=True)]
    assert [choice.index for choice in chunks if choice.delta.role == "assistant"] == [0, 1]
    said = ["".join(choice.delta.content or "" for choice in chunks if choice.index == index) for index in (0, 1)]
    assert said == ["a b", "a b"]


def test_several_prompts_are_answered_in_their_order(client, tokenizer):
    prompts = ["The river", "a", "b c"]
    reply = client.complete(prompts, n=2, seed=3)
    assert [choice.index for choice in reply.choices] == list(range(6))
    assert [choice.text for choice in reply.choices] == [f"{text} {seed}" for text in prompts for seed in (3, 4)]
    assert reply.usage.prompt_tokens == sum(1 + len(tokenizer.encode(text)) for text in prompts)
    alone = client.complete("a", n=2, seed=3)
    assert [choice.text for choice in alone.choices] == [choice.text for choice in reply.choices[2:4]]


def test_several_prompts_may_be_ids(client, tokenizer):
    ids = [tokenizer.encode("The river"), tokenizer.encode("a")]
    assert [choice.text for choice in client.complete(ids, seed=1).choices] == ["The river 1", "a 1"]
    assert [prompt for prompt, _ in client.engine.calls] == ids


def test_prompts_and_choices_together_are_limited(client):
    with pytest.raises(openai.BadRequestError, match="prompt holds 65 texts and 64 are taken at most"):
        client.complete(["a"] * 65, n=2)
    assert len(client.complete(["a"] * 64, n=2, seed=0).choices) == 128


def test_one_answer_of_several_ends_by_length(client):
    reply = client.complete(["a", "The river and the sea"], max_tokens=6, seed=1)
    assert [choice.finish_reason for choice in reply.choices] == ["stop", "length"]


def test_a_request_for_many_answers_fills_the_queue_for_others(serve):
    client = serve("a b", queue_length=2)
    client.engine.hold_at = 0
    stream = client.chat(n=4, stream=True)
    wait_until(lambda: len(client.state.queue._waiting) == 3, "three answers wait")
    with pytest.raises(openai.RateLimitError, match="3 requests are waiting"):
        client.chat()
    client.engine.go_on.set()
    said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert said.count("a b") == 4


def test_penalties_reach_the_engine(serve):
    client = serve("a")
    client.chat(presence_penalty=0.5, frequency_penalty=-1)
    sampling = client.engine.calls[0][1]
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -1)
