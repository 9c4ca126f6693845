"""The engine says what the model says, and models with adapters are merged as they are served."""

import contextlib
import json

import pytest
import torch

import peft_models as build
from herdsman_server.engine import Sampling
from herdsman_server.loading import choose_template, load_served_model, starts_with_bos
from herdsman_server.transformers_engine import load_engine
from herdsman_trainer.artifacts import draft_artifact, publish_artifact
from herdsman_trainer.errors import BadInput
from herdsman_trainer.tokenizers import copy_tokenizer, load_tokenizer
from herdsman_trainer.weights.chain import open_chain
from run_configs import run_config, server_config
from tiny import tiny_bpe_tokenizer, tiny_chatml_tokenizer, tiny_llama, tiny_sentencepiece

PROMPT = [1, 40, 50, 60, 70]
GREEDY = Sampling(max_tokens=12, temperature=0, repetition_penalty=1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose answers are not all the same: larger weights than at initialisation."""
    directory = tiny_llama(tmp_path_factory.mktemp("model"))
    build.make_talkative(directory)
    return directory


@pytest.fixture(scope="module")
def engine(model):
    return load_engine(open_chain(model, dtype=torch.float32), "cpu")


def say(engine, sampling=GREEDY, stop_ids=frozenset({2}), prompt=PROMPT, enough=1000):
    tokens = []

    def on_token(token):
        tokens.append(token)
        return len(tokens) < enough

    engine.generate(prompt, sampling, stop_ids, on_token)
    return tokens


def greedy_by_hand(model, steps, prompt=PROMPT, penalty=1.0):
    """What the most probable tokens are, without any cache."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            logits = model(torch.tensor([ids])).logits[0, -1]
            for token in set(ids):
                logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
            ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_at_temperature_0_the_most_probable_tokens_are_said(model, engine, penalty):
    sampling = Sampling(max_tokens=12, temperature=0, repetition_penalty=penalty)
    expected = greedy_by_hand(build.load(model), 12, penalty=penalty)
    assert len(set(expected)) > 2
    assert say(engine, sampling, stop_ids=frozenset()) == expected


def test_a_stop_id_ends_the_answer_and_is_heard(engine):
    whole = say(engine, stop_ids=frozenset())
    stop = whole[4]
    assert say(engine, stop_ids=frozenset({stop})) == whole[: whole.index(stop) + 1]


def test_the_engine_stops_when_nobody_wants_more(engine):
    assert say(engine, stop_ids=frozenset(), enough=3) == say(engine, stop_ids=frozenset())[:3]


def test_the_same_seed_gives_the_same_answer_and_others_differ(engine):
    def drawn(seed):
        return say(engine, Sampling(max_tokens=12, temperature=1.5, top_p=1, top_k=0, seed=seed), frozenset())

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in (1, 2, 3, None, None)}) >= 4


def test_top_k_1_is_greedy_whatever_the_temperature(engine):
    sampling = Sampling(max_tokens=12, temperature=2.0, top_k=1, repetition_penalty=1.0)
    assert say(engine, sampling, frozenset()) == say(engine, stop_ids=frozenset())


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_adapters_are_served_as_their_merge_is(tmp_path, tied):
    base = tiny_llama(tmp_path / "base", tied=tied)
    full = ("embed_tokens",) if tied else ("embed_tokens", "lm_head")
    first = build.adapter(tmp_path / "first", base, rows=410, full=full, tied=tied, seed=1)
    copy_tokenizer(tiny_sentencepiece(tmp_path / "tokenizer", 410), first)
    second = build.adapter(tmp_path / "second", base, full=(), targets=["q_proj", "v_proj"], seed=2)
    engine = load_engine(open_chain(base, [first, second], dtype=torch.float32), "cpu")
    state = build.merged_by_peft(base, [first, second], 410)
    reference = build.load(base)
    reference.resize_token_embeddings(410, mean_resizing=False)
    reference.load_state_dict(state)
    assert say(engine, stop_ids=frozenset()) == greedy_by_hand(reference, 12)


def test_a_served_model_has_answered_once_before_it_is_handed_on(model, monkeypatch):
    asked = []
    engine_class = type(load_engine(open_chain(model, dtype=torch.float32), "cpu"))
    generate = engine_class.generate
    monkeypatch.setattr(
        engine_class, "generate", lambda self, *arguments: (asked.append(arguments[0]), generate(self, *arguments))
    )
    served = load_served_model(server_config(model)).served
    assert len(asked) == 1
    assert served.template.name == "alpaca"
    assert served.starts_with_bos


def chain_of(directory, tokenizer, **files):
    tiny_llama(directory, tokenizer, hidden_size=16)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)
    return open_chain(directory)


@pytest.mark.parametrize(
    ("build_tokenizer", "files", "expected"),
    [
        (tiny_sentencepiece, {}, "alpaca"),
        (tiny_sentencepiece, {"chat_template__jinja": "{{ '[INST] ' + messages[0]['content'] }}"}, "llama-2"),
        (tiny_bpe_tokenizer, {}, "llama-3"),
        (tiny_chatml_tokenizer, {}, "chatml"),
    ],
)
def test_a_model_that_says_nothing_gets_the_template_its_files_show(tmp_path, build_tokenizer, files, expected):
    chain = chain_of(tmp_path / "model", build_tokenizer(tmp_path / "tokenizer"), **files)
    files = chain.tokenizer_directory, chain.tokenizer
    assert choose_template(None, *files).name == expected
    assert choose_template("llama-2", *files).name == "llama-2"


def test_the_template_of_the_tuning_wins_over_what_files_show(tmp_path):
    model = tiny_llama(tmp_path / "model", tiny_chatml_tokenizer(tmp_path / "tokenizer"), hidden_size=16)
    config = run_config(tmp_path)
    draft = draft_artifact(config)
    for path in model.iterdir():
        (draft / path.name).write_bytes(path.read_bytes())
    publish_artifact(config, draft, kind="model", prompt_template="alpaca")
    assert load_served_model(server_config(tmp_path / "work/artifact")).served.template.name == "alpaca"


@pytest.mark.parametrize(
    ("stated", "build_tokenizer", "expected"),
    [
        (None, tiny_sentencepiece, True),
        (None, tiny_bpe_tokenizer, True),
        (False, tiny_sentencepiece, False),
        (False, tiny_bpe_tokenizer, False),
        (True, tiny_bpe_tokenizer, True),
    ],
)
def test_plain_text_starts_with_bos_as_the_tokenizer_says(tmp_path, stated, build_tokenizer, expected):
    build_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    if stated is not None:
        path.write_text(json.dumps({**config, "add_bos_token": stated}))
    assert starts_with_bos(tmp_path, load_tokenizer(tmp_path)) is expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"template": "llama-3"}, "needs the control token .*eot_id"),
        ({"device": "cuda"}, "GPU"),
    ],
)
def test_a_server_that_cannot_work_says_why_before_it_is_ready(model, options, says):
    with contextlib.nullcontext() if torch.cuda.is_available() else pytest.raises(BadInput, match=says):
        load_served_model(server_config(model, **options))


def test_an_adapter_that_does_not_fit_is_refused_as_in_a_merge(tmp_path, model):
    adapter = build.adapter(tmp_path / "adapter", model, rows=410)
    with pytest.raises(BadInput, match=r"has 410 rows and the tokenizer .* has 400 pieces"):
        load_served_model(server_config(model, [adapter]))
