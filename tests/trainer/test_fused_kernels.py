"""The Triton kernels do what the plain operations do; here by Triton's interpreter, on the CPU."""

import os

import numpy as np
import pytest
import torch

os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="needs Triton: make kernels")
from herdsman_trainer.fused import plain_ops, triton_ops
from herdsman_trainer.fused.dropout import Dropout, site_hash, threshold_of, token_keys
from herdsman_trainer.fused.lora import LoraGroup, Part

T, D, HEADS, KV, SIZE, F = 37, 64, 2, 1, 32, 96
QKV_WIDTH = (HEADS + 2 * KV) * SIZE


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def a_group(inputs: int, edges: list[tuple[int, int]], rank: int = 5) -> LoraGroup:
    parts = tuple(Part(str(index), start, stop, index) for index, (start, stop) in enumerate(edges))
    outputs = sum(stop - start for start, stop in edges)
    a, b = drawn(rank * len(parts), inputs, scale=0.3), drawn(outputs * rank, scale=0.3)
    return LoraGroup(parts, rank, 1.5, a, b, torch.zeros_like(a), torch.zeros_like(b))


def a_dropout(share: float = 0.25) -> Dropout:
    return Dropout(torch.from_numpy(token_keys(3, 4, T)), site_hash(1, 2), threshold_of(share))


def tables() -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.arange(T)[:, None] * (0.3 ** torch.arange(SIZE // 2))[None]
    both = torch.cat([angles, angles], dim=1)
    return both.cos(), both.sin()


def both_ways(name: str, *arguments, **options):
    """Return what plain and Triton operation give for copies of the arguments, and the copies."""
    results = []
    for ops in (plain_ops, triton_ops):
        copies = [_copied(each) for each in arguments]
        results.append((getattr(ops, name)(*copies, **options), copies))
    return results


def _copied(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, LoraGroup):
        return LoraGroup(
            value.parts, value.rank, value.scale, value.a, value.b, value.grad_a.clone(), value.grad_b.clone()
        )
    return tuple(_copied(each) for each in value) if isinstance(value, tuple) else value


def assert_same(mine, theirs) -> None:
    if isinstance(theirs, torch.Tensor):
        torch.testing.assert_close(mine.to(theirs.dtype), theirs, rtol=2e-5, atol=2e-5)
    elif isinstance(theirs, LoraGroup):
        assert_same(mine.grad_a, theirs.grad_a)
        assert_same(mine.grad_b, theirs.grad_b)
    elif isinstance(theirs, tuple | list):
        for one, other in zip(mine, theirs, strict=True):
            assert_same(one, other)
    else:
        assert mine == theirs or theirs is None


QKV_GROUPS = {
    "no LoRA": None,
    "queries, keys and values": [(0, 64), (64, 96), (96, 128)],
    "queries and values": [(0, 64), (96, 128)],
    "keys": [(64, 96)],
}
GATE_UP_GROUPS = {"no LoRA": None, "gate and up": [(0, 96), (96, 192)], "up": [(96, 192)]}


def test_the_norm_and_its_gradient():
    weight, h, dx, residual = drawn(D), drawn(T, D), drawn(T, D, seed=1), drawn(T, D, seed=2)
    (plain, _), (kernel, _) = both_ways("rms_norm", h, weight, 1e-5)
    assert_same(kernel, plain)
    for other in (residual, None):
        (theirs, _), (mine, _) = both_ways("rms_norm_backward", dx, h, weight, plain[1], other)
        assert_same(mine, theirs)


@pytest.mark.parametrize("rank", [1, 5, 16, 70])
@pytest.mark.parametrize("dropout", [None, a_dropout()], ids=["whole", "dropout"])
def test_down_up_and_their_gradients(rank, dropout):
    group = a_group(D, [(0, 48)], rank)
    x, y = drawn(T, D), drawn(T, 48)
    (xa, _), (mine, _) = both_ways("lora_down", x, group, dropout)
    assert_same(mine, xa)
    norm = drawn(D, seed=1), drawn(T, seed=3).abs()
    for name, arguments in {
        "output": (y, drawn(T, 48, seed=5), xa, group),
        "output ": (y, drawn(T, 48, seed=5), None, None),
        "lora_up_backward": (y, xa, group),
        "lora_down_backward_": (drawn(T, D, seed=4), xa, x, group, dropout),
        "lora_down_backward_ ": (drawn(T, D, seed=4), xa, x, group, dropout, norm),
    }.items():
        theirs, mine = both_ways(name.strip(), *arguments)
        assert_same(mine, theirs)


@pytest.mark.parametrize("edges", QKV_GROUPS.values(), ids=QKV_GROUPS.keys())
def test_queries_keys_and_values(edges):
    group = a_group(D, edges) if edges else None
    qkv, xa = drawn(T, QKV_WIDTH), None if group is None else drawn(T, group.a.shape[0])
    theirs, mine = both_ways("qkv_up_rotate_", qkv, xa, group, *tables(), HEADS + KV)
    assert_same(mine, theirs)
    if group is not None:
        theirs, mine = both_ways("lora_up_backward", qkv, xa, group)
        assert_same(mine, theirs)
        dx, x = drawn(T, D, seed=4), drawn(T, D)
        theirs, mine = both_ways("lora_down_backward_", dx, xa, x, group, a_dropout())
        assert_same(mine, theirs)


def test_the_gradients_of_queries_keys_and_values():
    gradients = tuple(drawn(T, heads, SIZE, seed=heads) for heads in (HEADS, KV, KV))
    theirs, mine = both_ways("qkv_rotate_backward", gradients, *tables(), HEADS + KV)
    assert_same(mine, theirs)


@pytest.mark.parametrize("edges", GATE_UP_GROUPS.values(), ids=GATE_UP_GROUPS.keys())
def test_gate_and_up(edges):
    group = a_group(D, edges) if edges else None
    gate_up, dact = drawn(T, 2 * F), drawn(T, F)
    xa = None if group is None else drawn(T, group.a.shape[0])
    results = []
    for ops in (plain_ops, triton_ops):
        kept = gate_up.clone()
        act = ops.swiglu(kept, xa, group)
        results.append((act, kept.clone(), ops.swiglu_backward_(dact.clone(), kept)))
    assert_same(results[1], results[0])


@pytest.mark.parametrize("scale", [torch.tensor(0.25), None], ids=["gradient", "loss alone"])
def test_cross_entropy_over_a_padded_vocabulary(scale):
    logits, labels = drawn(T, 128, scale=3.0), torch.from_numpy(np.random.RandomState(1).randint(0, 99, T))
    theirs, mine = both_ways("cross_entropy_", logits, labels, 99, scale)
    assert_same(mine, theirs)


def test_shapes_that_cannot_be_cut_are_left_to_the_plain_operations():
    assert triton_ops.fits((4096, 1024, 11008), 128, 64)
    assert not triton_ops.fits((4096, 1000, 11008), 128, 64)
    assert not triton_ops.fits((4096, 1024), 96, 64)
    assert not triton_ops.fits((64, 16), 16, 8)
    assert not triton_ops.fits((4096, 1024), 128, 200)


def test_the_whole_model_with_kernels_is_the_whole_model_without(monkeypatch):
    from transformers import LlamaConfig, LlamaForCausalLM

    from herdsman_trainer.fused import model as fused
    from trainer.test_fused import SEED, a_batch, gradients, trained

    config = LlamaConfig(
        vocab_size=83, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(1)
    model = trained(LlamaForCausalLM(config).requires_grad_(False), dropout=0.2)
    found = {}
    for name, ops in {"plain": plain_ops, "triton": triton_ops}.items():
        monkeypatch.setattr(fused, "operations", lambda *_, ops=ops: ops)
        objective = fused.FusedModel(model, dtype=torch.float32, seed=SEED)
        found[name] = (float(objective.accumulate(a_batch(), 0.5)), gradients(model))
    assert found["triton"][0] == pytest.approx(found["plain"][0], rel=1e-6)
    for name, value in found["plain"][1].items():
        assert (found["triton"][1][name] - value).norm() <= 2e-5 * value.norm(), name
