"""Answers that have to be JSON are, whatever the model would rather say, in both engines."""

import json
from dataclasses import replace

import jsonschema
import openai
import pytest
import torch

import peft_models as build
from herdsman_server.engine import Sampling
from herdsman_server.loading import gguf_file
from herdsman_server.transformers_engine import load_engine
from herdsman_trainer.tokenizers import load_tokenizer
from herdsman_trainer.weights.chain import open_chain
from merges import merge
from tiny import tiny_llama

pytest.importorskip("llguidance", reason="needs llguidance: pip install llguidance")
from herdsman_server.json_grammar import JsonGrammars

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["杭州", "北京"]},
        "count": {"type": "integer", "minimum": 10, "maximum": 99},
        "sure": {"type": "boolean"},
    },
    "required": ["city", "count", "sure"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model that says anything but JSON, as Hugging Face weights and as GGUF."""
    root = tmp_path_factory.mktemp("merged")
    model = tiny_llama(root / "model")
    build.make_talkative(model)
    return merge(root, model, [], outputs={"huggingface": {}, "gguf": [{"type": "F32"}]}, template="alpaca")[1]


@pytest.fixture(scope="module")
def used(directory):
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def transformers(directory):
    return load_engine(open_chain(directory, dtype=torch.float32), "cpu")


@pytest.fixture(scope="module")
def llamacpp(directory):
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
    from herdsman_server.llama_cpp_engine import LlamaCppEngine

    return LlamaCppEngine(gguf_file(directory, "F32"), context_length=128, exact=True)


@pytest.fixture(params=["transformers", "llamacpp"])
def client(request, serve, used):
    return serve(engine=request.getfixturevalue(request.param), used=used)


def test_an_answer_fits_its_schema(client):
    for seed in range(3):
        choice = client.complete(
            "x", extra_body={"response_format": FORM}, seed=seed, temperature=1.5, top_p=1
        ).choices[0]
        jsonschema.validate(json.loads(choice.text), SCHEMA)
        assert choice.finish_reason == "stop"


def test_a_streamed_answer_fits_its_schema(client):
    chunks = client.complete("x", extra_body={"response_format": FORM}, stream=True, logprobs=1)
    choices = [chunk.choices[0] for chunk in chunks]
    text = "".join(choice.text for choice in choices)
    jsonschema.validate(json.loads(text), SCHEMA)
    assert len([choice for choice in choices if choice.text]) > 5, "it comes piece by piece"


def test_any_object_may_be_asked_for(client):
    form = {"response_format": {"type": "json_object"}}
    choice = client.complete("x", extra_body=form, max_tokens=40, temperature=1, seed=1).choices[0]
    assert choice.text.startswith("{")
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.text), dict)


def test_both_engines_say_the_same_json(used, transformers, llamacpp):
    stop = frozenset({used.eos_id})
    grammar = JsonGrammars(used, stop).grammar(SCHEMA)
    sampling = Sampling(max_tokens=60, temperature=0, grammar=grammar, repetition_penalty=1.0)
    for options in ({}, {"presence_penalty": 0.5}, {"repetition_penalty": 1.2}):
        answers = []
        for engine in (transformers, llamacpp):
            said = []
            engine.generate(
                [1, 40, 50], replace(sampling, **options), stop, lambda token, said=said: not said.append(token)
            )
            answers.append(said)
        assert answers[0] == answers[1]
        jsonschema.validate(json.loads(used.decode(answers[0])), SCHEMA)


def test_json_is_not_penalised_for_repeating_its_quotes_unless_asked_to(serve, used):
    client = serve("{}", used=used)
    form = {"response_format": {"type": "json_object"}}
    client.chat(**form)
    client.chat(**form, extra_body={"repetition_penalty": 1.2})
    client.chat(response_format={"type": "text"})
    assert [call[1].repetition_penalty for call in client.engine.calls] == [1.0, 1.2, 1.1]
    assert [call[1].grammar is None for call in client.engine.calls] == [False, False, True]


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "frob"}}}, "cannot be kept to"),
        ({"type": "json_schema"}, "json_schema belongs to the type json_schema"),
        ({"type": "json_object", "json_schema": {"name": "x", "schema": {}}}, "json_schema belongs to"),
        ({"type": "xml"}, "response_format.type"),
    ],
)
def test_a_form_that_cannot_be_kept_to_is_refused(serve, form, says):
    with pytest.raises(openai.BadRequestError, match=says):
        serve("a").chat(response_format=form)
