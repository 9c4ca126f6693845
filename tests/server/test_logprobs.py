"""Log-probabilities as OpenAI shows them, down to the bytes of half characters."""

import math

import pytest

from herdsman_server.answer_text import AnswerText
from herdsman_server.engine import Logprobs
from herdsman_trainer.tokenizers import load_tokenizer
from tiny import tiny_bpe_tokenizer, tiny_sentencepiece

SAID = "The river 天空 是😀 end"


class SureEngine:
    """Says a text, each token with a log-probability of its place and the tokens before it in the vocabulary."""

    parallel = 1
    broken = None
    context_length = 200

    def __init__(self, tokenizer, text=SAID):
        self.ids = [*tokenizer.encode(text), tokenizer.eos_id]
        self.asked = []

    def generate(self, prompt, sampling, stop_ids, on_token):
        self.asked.append(sampling.logprobs)
        for place, token in enumerate(self.ids[: sampling.max_tokens]):
            top = tuple((token - back, -back / 10) for back in range(sampling.logprobs or 0))
            told = () if sampling.logprobs is None or token in stop_ids else (Logprobs(-place / 4, top),)
            if not on_token(token, *told):
                return


@pytest.fixture(params=[tiny_sentencepiece, tiny_bpe_tokenizer], ids=["sentencepiece", "bpe"])
def used(request, tmp_path):
    return load_tokenizer(request.param(tmp_path))


def test_every_token_has_the_bytes_it_stands_for(used):
    ids = used.encode(SAID)
    assert b"".join(map(used.bytes_of, ids)).decode().lstrip() == SAID
    assert any(len(used.bytes_of(index)) > 0 and used.bytes_of(index)[0] >= 0x80 for index in ids)
    assert used.bytes_of(used.eos_id) == b""
    assert used.bytes_of(used.vocab_size) == b""


def test_chat_entries_spell_the_answer(serve, used):
    client = serve(engine=SureEngine(used), used=used)
    choice = client.chat(logprobs=True, top_logprobs=2).choices[0]
    entries = choice.logprobs.content
    assert len(entries) == len(client.engine.ids) - 1, "the end of the answer is no entry"
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == choice.message.content == SAID
    assert [entry.logprob for entry in entries] == [-place / 4 for place in range(len(entries))]
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    halves = [entry for entry in entries if "\N{REPLACEMENT CHARACTER}" in entry.token]
    assert halves, "the emoji is spelled by bytes"
    assert all(entry.bytes and max(entry.bytes) >= 0x80 for entry in halves)


def test_chat_entries_without_alternatives_have_none(serve, used):
    client = serve(engine=SureEngine(used), used=used)
    choice = client.chat(logprobs=True).choices[0]
    assert {len(entry.top_logprobs) for entry in choice.logprobs.content} == {0}
    assert client.chat().choices[0].logprobs is None
    assert client.engine.asked == [0, None]


def test_a_stream_has_the_entries_of_the_whole_answer(serve, used):
    client = serve(engine=SureEngine(used), used=used)
    whole = client.chat(logprobs=True, top_logprobs=1).choices[0].logprobs.content
    chunks = [chunk.choices[0] for chunk in client.chat(logprobs=True, top_logprobs=1, stream=True)]
    assert [entry for choice in chunks if choice.logprobs for entry in choice.logprobs.content] == whole
    for choice in chunks:
        entries = choice.logprobs.content if choice.logprobs else []
        assert bool(entries) == bool(choice.delta.content)


def test_a_completion_lists_tokens_and_where_they_begin(serve, used):
    client = serve(engine=SureEngine(used), used=used)
    choice = client.complete("x", logprobs=2).choices[0]
    lists = choice.logprobs
    count = len(client.engine.ids) - 1
    assert [len(lists.tokens), len(lists.token_logprobs), len(lists.top_logprobs), len(lists.text_offset)] == [
        count
    ] * 4
    for token, offset in zip(lists.tokens, lists.text_offset, strict=True):
        assert token.startswith("bytes:\\x") or choice.text[offset:].startswith(token)
    halves = [token for token in lists.tokens if token.startswith("bytes:")]
    assert bytes(int(part, 16) for token in halves for part in token.removeprefix("bytes:\\x").split("\\x"))
    assert all(
        lists.top_logprobs[place][token] == lists.token_logprobs[place] for place, token in enumerate(lists.tokens)
    )


def test_zero_alternatives_of_a_completion_still_show_the_tokens(serve, used):
    client = serve(engine=SureEngine(used), used=used)
    lists = client.complete("x", logprobs=0).choices[0].logprobs
    assert [list(top) for top in lists.top_logprobs] == [[token] for token in lists.tokens]
    assert client.complete("x").choices[0].logprobs is None


def test_tokens_behind_a_stop_string_are_not_told(serve, used):
    client = serve(engine=SureEngine(used), used=used)
    choice = client.chat(logprobs=True, stop="空").choices[0]
    assert choice.message.content == "The river 天"
    told = bytes(byte for entry in choice.logprobs.content for byte in entry.bytes).decode()
    assert told == choice.message.content


def test_half_a_character_at_the_end_is_told_by_its_bytes_only(used):
    ids = used.encode("a😀")
    answer = AnswerText(used, frozenset(), ())
    pieces = [answer.push(token, Logprobs(math.log(0.5))) for token in ids[:-1]]
    rest, finished = answer.finish()
    tokens = [token for piece in [*pieces, rest] if piece for token in piece.tokens]
    assert "".join(piece.text for piece in [*pieces, rest] if piece) == "a"
    assert len(tokens) == len(ids) - 1
    assert tokens[-1].text.decode(errors="replace") == "\N{REPLACEMENT CHARACTER}"
    assert finished.reason == "length"
