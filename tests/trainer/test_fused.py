"""The written-out passes are held against transformers' Llama with peft's LoRA and PyTorch's own gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from herdsman.api.v1alpha1.recipes import Lora
from herdsman_trainer.batches import IGNORED, Batch, collate_rows
from herdsman_trainer.fused.block import DOWN, GATE_UP, OUT, QKV
from herdsman_trainer.fused.dropout import Dropout, site_hash, threshold_of, token_keys
from herdsman_trainer.fused.frozen import FORMATS
from herdsman_trainer.fused.model import SITES, FusedModel, place_dropout, why_not
from herdsman_trainer.fused.packing import pack
from herdsman_trainer.lora import TrainedModel, full_names, train_embeddings, train_lora
from herdsman_trainer.objective import token_nll

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VOCABULARY = 83
SEED = 11


def a_llama(*, tied: bool = False, layers: int = 2, **options) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=tied, **options,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    model.config.use_cache = False
    return model.requires_grad_(False)


def trained(
    base: LlamaForCausalLM, targets=ALL, full=("embed_tokens", "lm_head"), dropout: float = 0.0, rank: int = 3
) -> TrainedModel:
    """Return the model with a LoRA whose B is not zero, so that every gradient is there."""
    lora = Lora(rank=rank, alpha=6, dropout=dropout, targets=list(targets), train_fully=list(full))
    tied = base.config.tie_word_embeddings
    model = train_lora(base, lora, full_names(lora, "LoRA", tied=tied), {}, seed=5)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, weight in model.trained.items():
            if name.endswith("lora_B.weight"):
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return model


def a_batch(lengths=(9, 17, 5, 17), sources=(1, 4, 2, 16), places=(40, 3, 7, 12)) -> Batch:
    random = np.random.RandomState(2)
    rows = [(random.randint(0, VOCABULARY, size), source) for size, source in zip(lengths, sources, strict=True)]
    return replace(collate_rows(rows, pad_id=0), places=np.array(places, np.int64))


def gradients(model: TrainedModel) -> dict[str, torch.Tensor]:
    found = {
        name: torch.zeros_like(item) if item.grad is None else item.grad.clone() for name, item in model.trained.items()
    }
    for item in model.trained.values():
        item.grad = None
    return found


def by_autograd(model: TrainedModel, batch: Batch, scale: float) -> tuple[float, dict[str, torch.Tensor]]:
    total = token_nll(model.module, batch, torch.device("cpu"), torch.float32).sum()
    (total * scale).backward()
    return float(total.detach()), gradients(model)


def by_us(model: TrainedModel, batch: Batch, scale: float, **options) -> tuple[float, dict[str, torch.Tensor]]:
    fused = FusedModel(model, dtype=torch.float32, seed=SEED, **options)
    return float(fused.accumulate(batch, scale)), gradients(model)


def assert_alike(mine, theirs, bound=2e-5) -> None:
    assert mine[0] == pytest.approx(theirs[0], rel=1e-6)
    assert mine[1].keys() == theirs[1].keys()
    for name, expected in theirs[1].items():
        assert expected.norm() > 0, name
        assert (mine[1][name] - expected).norm() <= bound * expected.norm(), name


SHAPES = {
    "all seven projections, embedding and head": {},
    "three projections": {"targets": ["q_proj", "v_proj", "gate_proj"]},
    "LoRA alone": {"full": ()},
    "the head and LoRA": {"full": ("lm_head",), "targets": ["o_proj", "up_proj"]},
    "a rank that is no power of two": {"rank": 7},
}


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES.keys())
def test_loss_and_gradients_are_those_of_transformers_and_peft(options):
    model = trained(a_llama(), **options)

    assert_alike(by_us(model, a_batch(), 0.25), by_autograd(model, a_batch(), 0.25))


def test_a_tied_head_and_scaled_positions_too():
    scaling = {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    model = trained(a_llama(tied=True, rope_parameters=scaling))

    assert_alike(by_us(model, a_batch(), 1.0), by_autograd(model, a_batch(), 1.0))


def test_the_embedding_alone_is_trained():
    base = a_llama()
    model = train_embeddings(base, ["model.embed_tokens.weight"], {})

    assert_alike(by_us(model, a_batch(), 1.0), by_autograd(model, a_batch(), 1.0))


def test_sequences_of_equal_length_go_another_way_to_the_same_end():
    batch = a_batch((16,) * 4, (1,) * 4)
    model = trained(a_llama())

    assert_alike(by_us(model, batch, 1.0), by_autograd(model, batch, 1.0))


def test_dropout_is_peft_s_with_our_masks():
    model = trained(a_llama(), dropout=0.3)
    batch = a_batch()
    mine = by_us(model, batch, 1.0)
    place_dropout(model, SEED).take(batch.places, batch.input_ids.shape[1], torch.device("cpu"))
    model.module.train()

    assert_alike(mine, by_autograd(model, batch, 1.0))


@pytest.mark.parametrize("recompute", ["Selective", "Full"])
def test_what_is_computed_again_is_the_same_bit_by_bit(recompute):
    model = trained(a_llama(), dropout=0.2)
    mine, again = by_us(model, a_batch(), 1.0), by_us(model, a_batch(), 1.0, recompute=recompute)

    assert mine[0] == again[0]
    assert all(torch.equal(mine[1][name], again[1][name]) for name in mine[1])


def test_how_a_global_batch_is_cut_does_not_matter_even_with_dropout():
    model = trained(a_llama(), dropout=0.2)
    whole = by_us(model, a_batch(), 1.0)
    fused = FusedModel(model, dtype=torch.float32, seed=SEED)
    loss = 0.0
    batch = a_batch()
    for rows in ([2, 0], [3], [1]):
        piece = Batch(*(array[rows] for array in (
            batch.input_ids, batch.labels, batch.attention_mask, batch.text_targets, batch.places
        )))  # fmt: skip
        loss += float(fused.accumulate(piece, 1.0))

    assert_alike((loss, gradients(model)), whole)


def test_a_row_of_several_documents_is_as_many_sequences():
    random = np.random.RandomState(4)
    ids = random.randint(0, VOCABULARY, 24)
    whole = collate_rows([(ids, 1)], 0)
    starts = np.zeros((1, 24), bool)
    starts[0, [7, 19]] = True
    apart = collate_rows([(ids[:7], 1), (ids[7:19], 1), (ids[19:], 1)], 0)
    model = trained(a_llama())

    labels = np.where(starts, IGNORED, whole.labels)
    cut = replace(whole, starts=starts, labels=labels, places=np.zeros(1, np.int64))
    expected = by_autograd(model, apart, 1.0)
    assert_alike(by_us(model, cut, 1.0), expected)
    assert_alike(by_autograd(model, cut, 1.0), expected)
    padded = replace(collate_rows([(ids, 1)], 0, length=32), places=cut.places)
    more = np.pad(starts, ((0, 0), (0, 8)))
    padded = replace(padded, starts=more, labels=np.where(more, IGNORED, padded.labels))
    assert_alike(by_us(model, padded, 1.0), expected)
    assert_alike(by_autograd(model, padded, 1.0), expected)


def test_the_loss_of_every_target_stands_where_it_stood():
    model = trained(a_llama(), dropout=0.5)
    batch = a_batch()
    model.module.eval()
    with torch.no_grad():
        theirs = token_nll(model.module, batch, torch.device("cpu"), torch.float32)

    mine = FusedModel(model, dtype=torch.float32, seed=SEED).token_nll(batch)

    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_row_without_targets_has_no_loss_and_no_gradient():
    batch = a_batch((9, 0), (1, 1), (0, 1))
    alone = a_batch((9,), (1,), (0,))
    model = trained(a_llama())

    assert_alike(by_us(model, batch, 1.0), by_us(model, alone, 1.0))
    nothing = replace(batch, labels=np.full_like(batch.labels, IGNORED))
    loss, found = by_us(model, nothing, 1.0)
    assert loss == 0.0
    assert all(not gradient.any() for gradient in found.values())


def test_the_model_of_transformers_stays_usable():
    model = trained(a_llama())
    model.module.eval()
    with torch.no_grad():
        before = token_nll(model.module, a_batch(), torch.device("cpu"), torch.float32)
        FusedModel(model, dtype=torch.float32, seed=SEED)
        after = token_nll(model.module, a_batch(), torch.device("cpu"), torch.float32)

    torch.testing.assert_close(after, before)
    pieces = [model.base.get_submodule(f"model.layers.0.self_attn.{name}_proj").base_layer.weight for name in "qkv"]
    assert len({piece.untyped_storage().data_ptr() for piece in pieces}) == 1


def test_trained_values_are_taken_over_when_told():
    model = trained(a_llama())
    fused = FusedModel(model, dtype=torch.float32, seed=SEED)
    before = float(fused.accumulate(a_batch(), 1.0))
    with torch.no_grad():
        for item in model.trained.values():
            item.mul_(1.5)

    fused.refresh()

    assert float(fused.accumulate(a_batch(), 1.0)) != pytest.approx(before, rel=1e-3)
    assert float(fused.token_nll(a_batch()).sum()) == pytest.approx(by_autograd(model, a_batch(), 1.0)[0], rel=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attention_bias": True}, "its projections have biases"),
        ({"mlp_bias": True}, "its projections have biases"),
        ({"hidden_act": "gelu"}, "its activation is gelu"),
    ],
)
def test_other_models_are_left_to_autograd(change, reason):
    assert why_not(trained(a_llama(**change))) == reason


def test_full_training_is_left_to_autograd():
    from herdsman_trainer.lora import train_everything

    assert "is trained" in why_not(train_everything(a_llama()))


class TestDropout:
    def test_the_share_and_the_mean_are_those_asked_for(self):
        keys = torch.from_numpy(np.concatenate([token_keys(1, place, 64) for place in range(64)]))
        dropout = Dropout(keys, site_hash(5, OUT), threshold_of(0.05))

        kept = dropout.kept(1000).double()

        assert kept.mean() == pytest.approx(0.95, abs=1e-3)
        assert (kept * dropout.scale).mean() == pytest.approx(1.0, abs=1e-3)
        assert kept.mean(0).std() == pytest.approx((0.05 * 0.95 / len(keys)) ** 0.5, rel=0.1)
        assert kept.mean(1).std() == pytest.approx((0.05 * 0.95 / 1000) ** 0.5, rel=0.1)

    def test_neighbours_columns_sites_steps_and_seeds_are_independent(self):
        def mask(seed=1, place=0, layer=0, site=QKV) -> torch.Tensor:
            keys = torch.from_numpy(token_keys(seed, place, 256))
            return Dropout(keys, site_hash(layer, site), threshold_of(0.5)).kept(256).double().flatten()

        first = mask()
        others = [mask(seed=2), mask(place=1), mask(layer=1), mask(site=GATE_UP), mask(site=DOWN), mask(site=OUT)]
        shifted = [first.view(256, 256).roll(shift, axis).flatten() for shift in (1, 2, 3) for axis in (0, 1)]
        for other in [*others, *shifted]:
            assert abs(torch.corrcoef(torch.stack([first, other]))[0, 1]) < 0.02

    def test_an_odd_number_of_columns_is_the_beginning_of_an_even_one(self):
        dropout = Dropout(torch.from_numpy(token_keys(1, 2, 5)), 9, threshold_of(0.3))

        assert torch.equal(dropout.kept(7), dropout.kept(8)[:, :7])


def test_packing_names_positions_targets_and_bounds():
    batch = replace(
        collate_rows([(np.array([5, 6, 7]), 2), (np.array([8]), 1), (np.array([1, 2]), 1)], 0), places=np.arange(3)
    )

    packed = pack(batch, torch.device("cpu"))

    assert packed.ids.tolist() == [5, 6, 7, 8, 1, 2]
    assert packed.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert packed.bounds.tolist() == [0, 3, 4, 6]
    assert packed.predicting.tolist() == [1, 4]
    assert packed.labels.tolist() == [7, 2]
    assert packed.cells.tolist() == [1, 2 * 7]


BOUNDS = {"Int8": 0.02, "NF4": 0.25, "FP8": 0.12}


class TestFormats:
    @pytest.mark.parametrize("base_format", BOUNDS)
    def test_products_are_near_those_of_the_matrix(self, base_format):
        weight, x = torch.randn(48, 64, generator=torch.Generator().manual_seed(1)), torch.randn(7, 64)
        frozen = FORMATS[base_format](weight)

        forward, backward = frozen.forward(x), frozen.backward(x[:, :48].contiguous())

        bound = BOUNDS[base_format]
        assert (forward - x @ weight.t()).norm() < bound * (x @ weight.t()).norm()
        assert (backward - x[:, :48] @ weight).norm() < bound * (x[:, :48] @ weight).norm()

    def test_int8_is_off_by_half_a_step_and_nf4_by_half_a_gap_at_most(self):
        weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(2))

        eight = FORMATS["Int8"](weight).whole(torch.float32)
        four = FORMATS["NF4"](weight).whole(torch.float32)

        steps = weight.abs().amax(1, keepdim=True) / 127
        assert ((eight - weight).abs() <= steps / 2 + 1e-6).all()
        widest_gap = 1.0 - 0.6961928009986877  # at the negative end
        assert ((four - weight).abs() <= weight.abs().amax(1, keepdim=True) * (widest_gap / 2 + 0.02)).all()

    @pytest.mark.parametrize("base_format", BOUNDS)
    def test_a_model_trains_on_it_as_on_the_matrices_it_stands_for(self, base_format):
        model, twin = trained(a_llama(), dropout=0.1), trained(a_llama(), dropout=0.1)
        fused = FusedModel(model, dtype=torch.float32, seed=SEED, base_format=base_format)
        if base_format != "FP8":  # whose products round what they are given, too
            with torch.no_grad():
                for layer, block in enumerate(twin.base.model.layers):
                    for site, names in SITES.items():
                        whole = fused._blocks[layer].weights[site].whole(torch.float32)
                        sizes = [block.get_submodule(name).base_layer.weight.shape[0] for name in names]
                        for name, part in zip(names, whole.split(sizes), strict=True):
                            block.get_submodule(name).base_layer.weight.copy_(part)
        mine = float(fused.accumulate(a_batch(), 1.0)), gradients(model)

        assert_alike(mine, by_us(twin, a_batch(), 1.0)) if base_format != "FP8" else self.near(mine, twin)

    @staticmethod
    def near(mine, twin) -> None:
        theirs = by_us(twin, a_batch(), 1.0)
        assert mine[0] == pytest.approx(theirs[0], rel=0.01)
        for name, value in theirs[1].items():
            assert (mine[1][name] - value).norm() < 0.3 * value.norm(), name
