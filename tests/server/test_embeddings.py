"""Vectors of texts: what they are, and in which forms clients send and get them."""

import base64
import struct

import openai
import pytest
import torch

import peft_models as build
from herdsman_server.batching.passes import TEXTS_AT_ONCE
from herdsman_server.transformers_engine import load_engine
from herdsman_trainer.tokenizers import load_tokenizer
from herdsman_trainer.weights.chain import open_chain
from tiny import tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def used(model):
    return load_tokenizer(model)


@pytest.fixture
def client(serve, model, used):
    return serve(engine=load_engine(open_chain(model, dtype=torch.float32), "cpu"), used=used)


def by_hand(model, ids):
    """The mean of one text's last states, with nothing padded, at length 1."""
    with torch.no_grad():
        states = build.load(model)(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    return torch.nn.functional.normalize(states.mean(dim=0), dim=0).tolist()


def embed(client, given, **options):
    return client.openai.embeddings.create(model="demo", input=given, **options)


def test_a_vector_is_the_mean_of_the_last_states_at_length_1(client, model, used):
    reply = embed(client, "The river", encoding_format="float")
    ids = [used.bos_id, *used.encode("The river")]
    assert reply.data[0].embedding == pytest.approx(by_hand(model, ids), abs=1e-5)
    assert sum(value**2 for value in reply.data[0].embedding) == pytest.approx(1, abs=1e-5)
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (len(ids), len(ids))
    assert (reply.object, reply.data[0].object, reply.model) == ("list", "embedding", "demo")


def test_texts_of_all_lengths_get_together_what_they_get_alone(client):
    texts = [
        "a",
        "The river and the sea and the sky",
        "天空是蓝色的",
        *[f"number {number}" for number in range(TEXTS_AT_ONCE)],
    ]
    reply = embed(client, texts, encoding_format="float")
    assert [each.index for each in reply.data] == list(range(len(texts)))
    for text, each in zip(texts, reply.data, strict=True):
        assert each.embedding == pytest.approx(embed(client, text, encoding_format="float").data[0].embedding, abs=1e-5)


def test_ids_are_taken_as_they_are(client, model):
    reply = embed(client, [[5, 6, 7], [8]], encoding_format="float")
    assert [each.embedding for each in reply.data] == [
        pytest.approx(by_hand(model, ids), abs=1e-5) for ids in ([5, 6, 7], [8])
    ]
    alone = embed(client, [5, 6, 7], encoding_format="float").data
    assert [each.embedding for each in alone] == [pytest.approx(reply.data[0].embedding, abs=1e-5)]


def test_base64_holds_the_same_vector_as_the_client_unpacks_it(client):
    plain = embed(client, "The river", encoding_format="float").data[0].embedding
    assert embed(client, "The river").data[0].embedding == pytest.approx(plain, abs=1e-6), "the client asks for base64"
    body = {"model": "demo", "input": "The river", "encoding_format": "base64"}
    packed = base64.b64decode(client.http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"])
    assert struct.unpack(f"<{len(plain)}f", packed) == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize(
    ("given", "options", "says"),
    [
        ("a", {"dimensions": 8}, "dimensions is not supported"),
        ([], {}, "input is empty"),
        (["a", [5]], {}, "input"),
        ([5, 4000], {}, "input holds the id 4000"),
        (["a"] * 2049, {}, "input holds 2049 texts and 2048 are taken at most"),
        ([[5] * 3000], {}, r"input\[0\] has 3000 tokens and the model takes"),
    ],
)
def test_what_has_no_vector_is_refused(client, given, options, says):
    options = {"encoding_format": "float", **options}
    with pytest.raises(openai.BadRequestError, match=says):
        embed(client, given, **options)


def test_an_unknown_model_has_no_vectors(client):
    with pytest.raises(openai.NotFoundError):
        client.openai.embeddings.create(model="other", input="a")
