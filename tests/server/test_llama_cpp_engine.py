"""The engine llamacpp says what transformers says of the same weights, and ends where it should."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

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
from herdsman_server.llama_cpp_engine import LlamaCppEngine

PROMPT = [1, 40, 50, 60, 70]
GREEDY = Sampling(max_tokens=12, temperature=0, repetition_penalty=1.0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A merged model with weights large enough that its answers vary, as Hugging Face weights and as GGUF."""
    root = tmp_path_factory.mktemp("merged")
    model = tiny_llama(root / "model")
    build.make_talkative(model)
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
    return load_served_model(server_config(directory, gguf_type="F32")).served


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


def test_what_is_computed_is_kept_while_others_are_answered(directory):
    engine = LlamaCppEngine(gguf_file(directory, "F32"), context_length=128, parallel=2)
    computed, post = [], engine._client.post

    def counted(path, json):
        answer = post(path, json=json)
        computed.append(answer.json()["timings"]["prompt_n"])
        return answer

    engine._client.post = counted
    turn, asked = threading.Barrier(2), ([1, *range(40, 50)], [1, *range(60, 70)])

    def answer(prompt):
        """By turns: each token of one is asked for while the other's slot is idle."""
        said = []

        def on_token(token):
            said.append(token)
            turn.wait(timeout=30)
            return len(said) < 12

        # A penalty of the answer has each token asked for by itself.
        engine.generate(prompt, replace(GREEDY, presence_penalty=0.1), frozenset(), on_token)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(answer, asked))
    assert len(computed) == 24
    assert sorted(computed) == [1] * 22 + [len(prompt) for prompt in asked], "a token each after the prompts"


@pytest.fixture(scope="module")
def exact(directory):
    """llama.cpp with all it computes in float32, so that its figures can be compared."""
    return LlamaCppEngine(gguf_file(directory, "F32"), context_length=128, exact=True)


@pytest.fixture(scope="module")
def reference(directory):
    """The same weights, computed by transformers."""
    return load_engine(open_chain(directory, dtype=torch.float32), "cpu")


def heard(engine, prompt=PROMPT, stop_ids=frozenset(), **options):
    """The tokens of a greedy answer with their log-probabilities."""
    entries = []

    def on_token(token, logprobs=None):
        entries.append((token, logprobs))
        return True

    engine.generate(prompt, replace(GREEDY, **options), stop_ids, on_token)
    return entries


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}, {"frequency_penalty": 0.7}], ids=str)
def test_log_probabilities_are_those_of_transformers_whatever_shapes_the_choice(exact, reference, options):
    for prompt in (PROMPT, list(range(5, 60))):
        told, expected = (heard(each, prompt, logprobs=5, **options) for each in (exact, reference))
        assert [token for token, _ in told] == [token for token, _ in expected]
        for (_, ours), (_, theirs) in zip(told, expected, strict=True):
            assert ours.chosen == pytest.approx(theirs.chosen, abs=1e-3)
            assert [index for index, _ in ours.top] == [index for index, _ in theirs.top]
            assert [value for _, value in ours.top] == pytest.approx([value for _, value in theirs.top], abs=1e-3)
            assert len(ours.top) == 5


def test_log_probabilities_are_of_all_tokens_before_anything_is_penalised(directory, exact):
    model = build.load(directory)
    for token, logprobs in heard(exact, logprobs=0, max_tokens=1, repetition_penalty=1.5):
        with torch.no_grad():
            expected = torch.log_softmax(model(torch.tensor([PROMPT])).logits[0, -1], dim=-1)[token]
        assert logprobs.chosen == pytest.approx(float(expected), abs=1e-3)
        assert logprobs.top == ()


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": 2.0},
        {"presence_penalty": -2.0},
        {"frequency_penalty": 1.5},
        {"presence_penalty": 0.4, "frequency_penalty": 0.9, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_penalties_of_the_answer_leave_the_prompt_alone_in_both_engines(directory, exact, reference, options):
    model = build.load(directory)
    prompt = list(range(5, 60))
    told = say(exact, replace(GREEDY, max_tokens=20, **options), prompt=prompt)
    assert say(reference, replace(GREEDY, max_tokens=20, **options), prompt=prompt) == told
    said = []
    while len(said) < 20:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *said]])).logits[0, -1]
        for token in set(said):
            logits[token] -= options.get("presence_penalty", 0) + options.get("frequency_penalty", 0) * said.count(
                token
            )
        for token in {*prompt, *said}:
            factor = options.get("repetition_penalty", 1.0)
            logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
        said.append(int(logits.argmax()))
    assert told == said
    assert told != say(exact, replace(GREEDY, max_tokens=20), prompt=prompt)


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


def test_answers_at_once_are_those_given_alone_however_little_memory_there_is(directory):
    """Each of four answers takes half the context, so that two are computed while two wait."""
    engine = LlamaCppEngine(gguf_file(directory, "F32"), context_length=128, parallel=4, exact=True)
    prompts = [[1, *range(40 + number, 80 + number)] for number in range(8)]
    sampling = replace(GREEDY, max_tokens=20)
    alone = [say(engine, sampling, prompt=prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda prompt: say(engine, sampling, prompt=prompt), prompts))
    assert together == alone
    assert len({tuple(answer) for answer in alone}) > 4
