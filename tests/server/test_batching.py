"""Answers in a batch are what each would be alone, whoever comes and goes."""

import copy
import dataclasses

import pytest
import torch
from transformers import GenerationConfig

import peft_models as build
from batches import Asked, together
from herdsman_server.batching import attention
from herdsman_server.batching import passes as passes_module
from herdsman_server.batching.attention import Sliced, Stretch
from herdsman_server.batching.batching_engine import BatchingEngine
from herdsman_server.batching.graphs import DecodeGraphs
from herdsman_server.batching.passes import Flight
from herdsman_server.engine import Logprobs, Sampling
from herdsman_server.transformers_engine import engine_of
from tiny import tiny_llama

GREEDY = Sampling(max_tokens=20, temperature=0, repetition_penalty=1.0)
DRAWN = Sampling(max_tokens=20, temperature=1.3, top_p=0.95, top_k=0, repetition_penalty=1.1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tiny_llama(tmp_path_factory.mktemp("model"))
    build.make_talkative(directory)
    return build.load(directory).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def make_engine(model):
    made = []

    def make(of=model, **options):
        made.append(engine_of(copy.deepcopy(of), **{"parallel": 4, "budget": 16, **options}))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture(scope="module")
def engine(make_engine):
    return make_engine()


def prompts(count, longest=40):
    generator = torch.Generator().manual_seed(7)
    lengths = [1 + (17 * number) % longest for number in range(count)]
    return [[1, *torch.randint(3, 400, (length,), generator=generator).tolist()] for length in lengths]


def by_generate(model, prompt, tokens=20, **options):
    ids = torch.tensor([prompt])
    settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0, **options)
    with torch.inference_mode():
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return whole[0, len(prompt) :].tolist()


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_greedy_answers_in_a_batch_are_those_of_generate(model, engine, penalty):
    sampling = dataclasses.replace(GREEDY, repetition_penalty=penalty)
    asked = together(engine, [Asked(prompt, sampling) for prompt in prompts(10)])
    assert isinstance(engine, BatchingEngine)
    expected = [by_generate(model, request.prompt, repetition_penalty=penalty) for request in asked]
    assert [request.tokens for request in asked] == expected
    assert len({tuple(answer) for answer in expected}) > 8


@pytest.mark.parametrize("rope", ["default", "llama3", "linear"])
def test_models_of_other_shapes_answer_as_generate_does(tmp_path, make_engine, rope):
    from transformers import LlamaConfig, LlamaForCausalLM

    kinds = {
        "default": {"rope_type": "default"},
        "linear": {"rope_type": "linear", "factor": 2.0},
        "llama3": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    }
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=128,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        rope_parameters={"rope_theta": 5000.0, **kinds[rope]},
    )
    torch.manual_seed(3)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.4 if parameter.dim() > 1 else 1.0))
    asked = together(make_engine(model), [Asked([number, 5, number + 9], GREEDY) for number in range(6)])
    assert [request.tokens for request in asked] == [by_generate(model, request.prompt) for request in asked]


def test_a_drawn_answer_does_not_depend_on_who_else_is_there(engine):
    mine = [Asked(prompt, dataclasses.replace(DRAWN, seed=seed)) for seed, prompt in enumerate(prompts(4))]
    alone = [Asked(request.prompt, request.sampling).ask(engine).tokens for request in mine]
    others = [Asked(prompt, dataclasses.replace(DRAWN, temperature=2.0)) for prompt in prompts(9)[4:]]
    together(engine, [*mine, *others])
    assert [request.tokens for request in mine] == alone
    assert len({tuple(answer) for answer in alone}) == 4


def test_where_memory_is_short_answers_make_room_for_each_other_and_all_come_out_whole(model, make_engine):
    small = make_engine(kv_tokens=256)
    asked = [Asked(prompt, dataclasses.replace(GREEDY, max_tokens=120)) for prompt in prompts(6)]
    drawn = Asked(prompts(2)[1], dataclasses.replace(DRAWN, max_tokens=120, seed=5))
    together(small, [*asked, drawn])
    assert [request.tokens for request in asked] == [by_generate(model, each.prompt, 120) for each in asked]
    assert drawn.tokens == Asked(drawn.prompt, drawn.sampling).ask(make_engine()).tokens
    assert small._passes.memory.extents.free == 16


def test_each_ends_by_its_own_measure(engine):
    whole = Asked(prompts(1)[0], GREEDY).ask(engine).tokens
    stop = whole[7]
    by_stop, by_length, by_choice, beside = together(
        engine,
        [
            Asked(prompts(1)[0], GREEDY, stop_ids=frozenset({stop})),
            Asked(prompts(1)[0], dataclasses.replace(GREEDY, max_tokens=3)),
            Asked(prompts(1)[0], GREEDY, enough=5),
            Asked(prompts(1)[0], GREEDY),
        ],
    )
    assert by_stop.tokens == whole[: whole.index(stop) + 1]
    assert by_length.tokens == whole[:3]
    assert by_choice.tokens == whole[:5]
    assert beside.tokens == whole


def test_penalties_of_the_answer_are_each_requests_own(engine):
    prompt = prompts(1)[0]
    plain = Asked(prompt, GREEDY).ask(engine).tokens
    harsh = dataclasses.replace(GREEDY, presence_penalty=2.0, frequency_penalty=2.0, max_tokens=40)
    alone = Asked(prompt, harsh).ask(engine).tokens
    beside, other = together(engine, [Asked(prompt, harsh), Asked(prompt, GREEDY)])
    assert (beside.tokens, other.tokens) == (alone, plain)
    assert alone != plain
    assert Asked(prompt, harsh).ask(engine).tokens == alone, "nothing is left over in the slot"


def test_log_probabilities_come_to_those_who_asked(model, engine):
    prompt = prompts(2)[1]
    asked, plain = together(
        engine, [Asked(prompt, dataclasses.replace(DRAWN, seed=2, logprobs=3)), Asked(prompt, GREEDY)]
    )
    assert plain.logprobs == [None] * 20
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *asked.tokens]])).logits[0].float()
    expected = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    for row, token, found in zip(expected, asked.tokens, asked.logprobs, strict=True):
        assert isinstance(found, Logprobs)
        assert found.chosen == pytest.approx(float(row[token]), abs=1e-4)
        assert [token for token, _ in found.top] == row.topk(3).indices.tolist()


class OnlyEven:
    """A language of even ids that ends after five."""

    class Constraint:
        def __init__(self):
            self.said = []
            self.ended = False

        def allowed(self):
            import numpy as np

            allowed = np.zeros(400, dtype=bool)
            if len(self.said) == 5:
                allowed[2] = True
            else:
                allowed[4::2] = True
            return allowed

        def push(self, token):
            if token % 2 or token < 4:
                raise ValueError(f"{token} is not allowed")
            self.said.append(token)

    def start(self):
        return self.Constraint()


def test_a_grammar_binds_the_request_that_has_it_and_no_other(engine):
    prompt = prompts(3)[2]
    plain = Asked(prompt, DRAWN, frozenset({2}))
    bound = [
        Asked(prompt, dataclasses.replace(sampling, grammar=OnlyEven()), frozenset({2})) for sampling in (GREEDY, DRAWN)
    ]
    free = Asked(prompt, GREEDY)
    together(engine, [plain, *bound, free])
    for request in bound:
        assert request.error is None
        assert len(request.tokens) == 6
        assert all(token % 2 == 0 for token in request.tokens)
        assert request.tokens[-1] == 2
    assert free.tokens == Asked(prompt, GREEDY).ask(engine).tokens


def test_who_fails_fails_alone(engine):
    def fails(token, logprobs=None, /):
        raise RuntimeError("the client is made of glass")

    broken, whole = Asked(prompts(1)[0], GREEDY), Asked(prompts(1)[0], GREEDY)
    broken.on_token = fails
    together(engine, [broken, whole])
    assert str(broken.error) == "the client is made of glass"
    assert len(whole.tokens) == 20


def test_a_pass_that_fails_is_told_to_all_that_were_in_it_and_the_next_ones_are_answered(engine, monkeypatch):
    passes = engine._passes
    carry_out = passes.carry_out

    def fails(made):
        if made.rows:
            raise RuntimeError("the device is gone")
        return carry_out(made)

    monkeypatch.setattr(passes, "carry_out", fails)
    asked = together(engine, [Asked(prompt, GREEDY) for prompt in prompts(3)])
    assert [str(request.error) for request in asked] == ["the device is gone"] * 3
    monkeypatch.undo()
    assert len(Asked(prompts(1)[0], GREEDY).ask(engine).tokens) == 20


def test_long_prompts_are_computed_in_parts_between_the_tokens_of_others(make_engine, model):
    engine = make_engine(budget=8)
    made = []
    carry_out = engine._passes.carry_out
    engine._passes.carry_out = lambda each: (made.append(each), carry_out(each))[1]
    long, short = [1, *range(5, 95)], [1, 7]
    answers = together(engine, [Asked(short, dataclasses.replace(GREEDY, max_tokens=60)), Asked(long, GREEDY)])
    assert [len(each.tokens) for each in answers] == [60, 20]
    assert answers[1].tokens == by_generate(model, long)
    parts = [sum(part.count for part in each.parts) for each in made if each.parts]
    assert max(parts) <= 8
    assert sum(parts) == 93
    kinds = "".join("p" if each.parts else "r" for each in made)
    assert "prp" in kinds.replace("rr", "r").replace("rr", "r"), "passes take turns"


def test_the_distribution_is_that_of_the_figures(engine, model):
    prompt = prompts(1)[0]
    sampling = Sampling(max_tokens=1, temperature=1.5, top_p=0.8, top_k=12, repetition_penalty=1.0)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt])).logits[0, -1].float() / 1.5
    values, ids = logits.topk(12)
    share = values.softmax(-1)
    kept = (share.cumsum(-1) - share) < 0.8
    share = (share * kept) / (share * kept).sum()
    counts = torch.zeros(12)
    for seed in range(400):
        (token,) = Asked(prompt, dataclasses.replace(sampling, seed=seed)).ask(engine).tokens
        counts[ids.tolist().index(token)] += 1
    assert not counts[~kept].any()
    assert (counts / 400 - share).abs().max() < 0.09


def test_vectors_of_texts_do_not_depend_on_their_neighbours(engine, model):
    texts = prompts(3)
    found = engine.embed(texts)
    with torch.inference_mode():
        for text, vector in zip(texts, found, strict=True):
            mean = model.model(torch.tensor([text])).last_hidden_state[0].mean(0)
            assert torch.allclose(torch.tensor(vector), torch.nn.functional.normalize(mean, dim=0), atol=1e-5)


def test_a_prompt_without_room_for_an_answer_is_the_callers_fault(engine):
    asked = Asked([1] * 256, GREEDY).ask(engine)
    assert isinstance(asked.error, ValueError)


class Later:
    """Stands for results that are on their way from a device."""

    def synchronize(self):
        pass


def test_results_that_come_a_pass_later_change_nothing(model, make_engine, monkeypatch):
    engine = make_engine(kv_tokens=384)
    passes = engine._passes
    monkeypatch.setattr(passes, "_take_off", lambda rows, chosen: Flight(rows, chosen, Later()))
    sampling = dataclasses.replace(GREEDY, max_tokens=50, repetition_penalty=1.2)
    asked = [Asked(prompt, sampling) for prompt in prompts(6)]
    bound = Asked(prompts(3)[2], dataclasses.replace(DRAWN, grammar=OnlyEven()), frozenset({2}))
    drawn = Asked(prompts(2)[1], dataclasses.replace(DRAWN, max_tokens=50, seed=5), enough=33)
    together(engine, [*asked, drawn, bound])
    expected = [by_generate(model, each.prompt, 50, repetition_penalty=1.2) for each in asked]
    assert [request.tokens for request in asked] == expected
    assert drawn.tokens == Asked(drawn.prompt, drawn.sampling, enough=33).ask(make_engine()).tokens
    assert len(bound.tokens) == 6


def by_hand(queries, keys, values, where):
    """What FlashAttention is asked for, from the numbers that it gets."""
    found = torch.full_like(queries, float("nan"))
    for number, length in enumerate(where.lengths.tolist()):
        begin, end = where.offsets[number : number + 2].tolist()
        start = int(where.starts[number])
        assert end - begin <= where.most_queries
        assert length <= where.most_keys
        one = Sliced([Stretch(end - begin, start, length)])
        found[begin:end] = one(queries[begin:end], keys, values)
    return found


class Replayed:
    def __init__(self, graphs, inputs, offsets, adapters):
        self.inputs = inputs
        self.graph = self
        self.logits = None
        self.replay = lambda: setattr(self, "logits", graphs._pass(inputs, offsets, adapters=adapters))


def test_what_is_recorded_on_a_gpu_is_the_same_pass(model, make_engine, monkeypatch):
    """There is no GPU here: its kernel is done by hand, and a recording is played by computing it again."""
    monkeypatch.setattr(attention, "kernel", by_hand)
    monkeypatch.setattr(passes_module, "flash_works", lambda *_: True)
    sizes = []

    def record(self, size, *, adapters):
        sizes.append(size)
        inputs = torch.zeros(4, size, dtype=torch.int64)
        offsets = torch.arange(size + 1, dtype=torch.int32)
        self._graphs[size, adapters] = Replayed(self, inputs, offsets, adapters)
        return self._graphs[size, adapters]

    monkeypatch.setattr(DecodeGraphs, "_record", record)
    engine = make_engine(kv_tokens=640, parallel=6)
    sampling = dataclasses.replace(GREEDY, max_tokens=50, repetition_penalty=1.2)
    asked = together(engine, [Asked(prompt, sampling) for prompt in prompts(9)])
    assert [each.error for each in asked] == [None] * 9
    expected = [by_generate(model, each.prompt, 50, repetition_penalty=1.2) for each in asked]
    assert [request.tokens for request in asked] == expected
    assert set(sizes) >= {4, 8}


def test_where_nothing_can_be_recorded_passes_are_launched_piece_by_piece(model, make_engine, monkeypatch):
    monkeypatch.setattr(attention, "kernel", by_hand)
    monkeypatch.setattr(passes_module, "flash_works", lambda *_: True)

    def record(self, size, *, adapters):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(DecodeGraphs, "_record", record)
    engine = make_engine()
    asked = together(engine, [Asked(prompt, GREEDY) for prompt in prompts(3)])
    assert [request.tokens for request in asked] == [by_generate(model, each.prompt) for each in asked]
    assert engine._passes.graphs is None
