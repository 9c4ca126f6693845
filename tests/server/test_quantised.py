"""Weights in 8 and 4 bits: less memory, nearly the same answers, with whichever product the machine has."""

import copy

import pytest
import torch

import peft_models as build
from batches import Asked, together
from herdsman_server.batching import linear
from herdsman_server.batching.linear import Int4Linear, Int8Linear, Linear
from herdsman_server.engine import Sampling
from herdsman_server.transformers_engine import engine_of
from tiny import tiny_llama

KINDS = {"int8": (Int8Linear, 0.01, 0.26), "int4": (Int4Linear, 0.12, 0.16)}
"""What computes it, how far it may be off relatively, and how many bytes it has of float32's."""


@pytest.fixture(params=["packed", "unpacked"])
def product(request, monkeypatch):
    """PyTorch's own product of packed weights, and what stands in where it has none."""
    if request.param == "unpacked":
        monkeypatch.setattr(linear, "_int8_works", lambda *_: False)
        monkeypatch.setattr(linear, "_int4_works", lambda *_: False)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_is_nearly_that_of_the_weights(kind, biased, product):
    made, tolerance, size = KINDS[kind]
    torch.manual_seed(0)
    weight, x = torch.randn(96, 256), torch.randn(5, 256)
    bias = torch.randn(96) if biased else None
    expected = Linear(weight, bias)(x)
    layer = made(weight, bias)
    assert layer._packed is (product == "packed")
    assert float((layer(x) - expected).norm() / expected.norm()) < tolerance
    assert layer.nbytes <= size * weight.nbytes


def test_both_products_of_four_bits_mean_the_same(monkeypatch):
    torch.manual_seed(0)
    weight, x = torch.randn(64, 128) * torch.logspace(-2, 1, 64)[:, None] + 0.3, torch.randn(7, 128)
    packed = Int4Linear(weight, None)
    monkeypatch.setattr(linear, "_int4_works", lambda *_: False)
    unpacked = Int4Linear(weight, None)
    assert (packed._packed, unpacked._packed) == (True, False)
    assert torch.allclose(packed(x), unpacked(x), rtol=1e-3, atol=1e-3)


def test_a_row_of_zeros_stays_zeros():
    weight = torch.zeros(32, 128)
    for made, _, _ in KINDS.values():
        assert not made(weight, None)(torch.ones(2, 128)).abs().gt(1e-4).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_fewer_bits_answers_in_a_batch_as_alone_and_takes_less(tmp_path_factory, kind):
    directory = tiny_llama(tmp_path_factory.mktemp("model"), hidden_size=128)
    build.make_talkative(directory)
    model = build.load(directory)
    whole = engine_of(copy.deepcopy(model), parallel=4)
    small = engine_of(copy.deepcopy(model), parallel=4, quantisation=kind)
    linear_bytes = 4 * sum(m.weight.numel() for name, m in model.named_modules() if "proj" in name)
    saved = whole.model.weight_bytes - small.model.weight_bytes
    assert saved > (1 - KINDS[kind][2]) * linear_bytes
    greedy = Sampling(max_tokens=10, temperature=0, repetition_penalty=1.0, logprobs=0)
    prompts = [[1, 40 + number, 50] for number in range(4)]
    asked = together(small, [Asked(prompt, greedy) for prompt in prompts])
    assert [each.error for each in asked] == [None] * 4
    assert [each.tokens for each in asked] == [Asked(each.prompt, greedy).ask(small).tokens for each in asked]
    near = Asked(prompts[0], greedy).ask(whole)
    if near.tokens[0] == asked[0].tokens[0]:
        assert near.logprobs[0].chosen == pytest.approx(asked[0].logprobs[0].chosen, abs=1.0)
    for engine in (whole, small):
        engine.close()
