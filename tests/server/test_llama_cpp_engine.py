"""The engine llamacpp says what transformers says of the same weights, and ends where it should."""

import pytest
import torch

import peft_models as build
from herdsman.api.job_config import ServerConfig
from herdsman_server.engine import Sampling
from herdsman_server.loading import gguf_file, load_served_model
from herdsman_server.transformers_engine import load_engine
from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.chain import open_chain
from merges import merge
from run_configs import owner, source
from tiny import tiny_llama

pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")

PROMPT = [1, 40, 50, 60, 70]
GREEDY = Sampling(max_tokens=12, temperature=0, repetition_penalty=1.0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A merged model with weights large enough that its answers vary, as Hugging Face weights and as GGUF."""
    root = tmp_path_factory.mktemp("merged")
    model = tiny_llama(root / "model")
    loaded = build.load(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape) * 0.4)
    loaded.save_pretrained(model)
    outputs = {"huggingface": {}, "gguf": [{"type": "F32"}, {"type": "Q8_0"}]}
    return merge(root, model, [], outputs=outputs, template="alpaca")[1]


def server_config(directory, **options):
    return ServerConfig(
        owner=owner(kind="ModelServer"),
        model=source(directory),
        model_name="m",
        port=8000,
        engine="llamacpp",
        **options,
    )


@pytest.fixture(scope="module")
def served(directory):
    return load_served_model(server_config(directory, gguf_type="F32"))


def say(engine, sampling=GREEDY, stop_ids=frozenset(), prompt=PROMPT, enough=1000):
    tokens = []

    def on_token(token):
        tokens.append(token)
        return len(tokens) < enough

    engine.generate(prompt, sampling, stop_ids, on_token)
    return tokens


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_at_temperature_0_it_says_what_transformers_says(directory, served, penalty):
    expected = load_engine(open_chain(directory, dtype=torch.float32), "cpu")
    for prompt in (PROMPT, [1, 300, 301, 77], list(range(5, 60))):
        sampling = Sampling(max_tokens=12, temperature=0, repetition_penalty=penalty)
        told = say(expected, sampling, frozenset({2}), prompt)
        assert say(served.engine, sampling, frozenset({2}), prompt) == told
        assert len(set(told)) > 2


def test_it_stops_when_nobody_wants_more_and_answers_the_next_one(served):
    whole = say(served.engine)
    assert len(whole) == 12
    assert say(served.engine, enough=3) == whole[:3]
    assert say(served.engine) == whole


def test_the_same_seed_gives_the_same_answer_and_others_differ(served):
    def drawn(seed):
        return say(served.engine, Sampling(max_tokens=12, temperature=1.5, top_p=1, top_k=0, seed=seed))

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in (1, 2, 3, None, None)}) >= 4


def test_an_end_that_only_the_file_knows_is_heard_as_a_stop(served, directory):
    """The end of a text, made nearly certain: EOS is what llama.cpp stops at, and it keeps that id to itself."""
    eos = served.tokenizer.eos_id
    drawn = Sampling(max_tokens=250, temperature=2.0, top_p=1, top_k=0, repetition_penalty=1.0)
    answers = [say(served.engine, drawn, frozenset({eos}), prompt=[1, number]) for number in range(40, 70)]
    ended = [answer for answer in answers if answer[-1] == eos]
    assert ended, "in thirty answers of 250 tokens out of 400 pieces EOS comes up"
    assert all(eos not in answer[:-1] for answer in answers)


def test_the_smallest_file_is_taken_unless_a_type_is_named(directory):
    assert gguf_file(directory, None).name.endswith("-Q8_0.gguf")
    assert gguf_file(directory, "F32").name.endswith("-F32.gguf")
    with pytest.raises(BadInput, match=r"type Q4_0 and there are .*Q8_0\.gguf") as refused:
        gguf_file(directory, "Q4_0")
    assert "outputs.gguf" in refused.value.hint


def test_a_model_without_gguf_files_says_what_to_do(tmp_path):
    with pytest.raises(BadInput, match="there is none") as refused:
        load_served_model(server_config(tiny_llama(tmp_path / "model")))
    assert "LoRAMerge" in refused.value.hint


def test_a_file_that_llama_cpp_cannot_load_is_named(directory, tmp_path):
    model = tiny_llama(tmp_path / "model")
    (model / "gguf").mkdir()
    (model / "gguf" / "m-Q8_0.gguf").write_bytes(next((directory / "gguf").glob("*-Q8_0.gguf")).read_bytes()[:20_000])
    with pytest.raises(BadInput, match=r"llama\.cpp cannot load the file") as refused:
        load_served_model(server_config(model))
    assert refused.value.file.endswith("m-Q8_0.gguf")
