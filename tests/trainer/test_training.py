"""The mathematics of a step, and what the loop does with bad numbers, stops and batches without targets."""

import math

import numpy as np
import pytest
import torch
from transformers import get_scheduler

import training_configs as build
from herdsman.api.v1alpha1.recipes import Batch as BatchRecipe
from herdsman.api.v1alpha1.recipes import Lora, Schedule
from herdsman_trainer.batches import IGNORED, TrainingStream
from herdsman_trainer.distributed import Processes
from herdsman_trainer.engines import PlainEngine, Update
from herdsman_trainer.errors import BadInput, Interrupted
from herdsman_trainer.evaluation import HeldOut, evaluate, tokens_of_other_vocabulary
from herdsman_trainer.fused.model import FusedModel, place_dropout
from herdsman_trainer.lora import full_names, train_lora
from herdsman_trainer.models import load_model
from herdsman_trainer.objective import AutogradObjective, token_nll
from herdsman_trainer.optimisation import adamw, learning_rate
from herdsman_trainer.sequence_order import GlobalBatch
from herdsman_trainer.tokenizers import load_tokenizer
from herdsman_trainer.training_run import global_batch
from herdsman_trainer.training_state import save_state
from tiny import tiny_llama
from training_rows import Rows

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("total", "ratio"), [(100, 0.05), (10, 0.25), (7, 0.0)])
def test_the_learning_rate_is_that_of_transformers_schedules(kind, total, ratio):
    schedule = Schedule(kind=kind, warmup_ratio=ratio)
    warmup = math.ceil(ratio * total)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    name = "constant_with_warmup" if kind == "constant" else kind
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    for step in range(total):
        assert learning_rate(step, total, 3e-4, schedule) == pytest.approx(
            theirs.get_last_lr()[0], rel=1e-12, abs=1e-18
        )
        optimizer.step()
        theirs.step()


def test_a_run_of_one_step_is_no_warm_up():
    assert learning_rate(0, 1, 3e-4, Schedule(kind="cosine", warmup_ratio=0.05)) == 3e-4


def test_biases_and_norms_do_not_decay():
    parameters = {"matrix": torch.nn.Parameter(torch.zeros(2, 2)), "norm": torch.nn.Parameter(torch.zeros(2))}
    groups = adamw(parameters, 0.1).param_groups
    assert [(group["params"][0].dim(), group["weight_decay"]) for group in groups] == [(2, 0.1), (1, 0.0)]
    assert {(group["betas"], group["eps"]) for group in groups} == {((0.9, 0.999), 1e-8)}


def lora_model(directory, dropout=0.0):
    lora = Lora(rank=2, alpha=4, dropout=dropout, targets=["q_proj", "v_proj"], train_fully=["embed_tokens", "lm_head"])
    model = load_model(directory, torch.float32)
    return train_lora(model, lora, full_names(lora, "LoRA", tied=False), {}, seed=1)


def plain(model):
    objective = AutogradObjective(model.module.train(), CPU, torch.float32, place_dropout(model, 7))
    return PlainEngine(model, objective, Processes(), dtype=torch.float32, weight_decay=0.01, max_grad_norm=1.0)


def fused(model):
    objective = FusedModel(model, dtype=torch.float32, seed=7)
    return PlainEngine(model, objective, Processes(), dtype=torch.float32, weight_decay=0.01, max_grad_norm=1.0)


def one_step(directory, micro, sequences=8):
    rows = Rows(sequences)
    model = lora_model(directory)
    engine = plain(model)
    stream = TrainingStream(rows, GlobalBatch(sequences, micro), seed=1)
    nll = sum(float(engine.accumulate(batch, stream.targets(0))) for batch in stream.micro_batches(0))
    gradients = {name: item.grad.clone() for name, item in model.trained.items()}
    update = engine.update(1e-3)
    return nll / stream.targets(0), gradients, update, model


def test_the_loss_is_the_mean_over_all_targets_of_the_global_batch(model_directory):
    loss, gradients, update, _ = one_step(model_directory, micro=2)
    model = lora_model(model_directory)
    model.module.train()
    batch = Rows().collate(range(8))
    theirs = model.module(
        input_ids=torch.from_numpy(batch.input_ids),
        labels=torch.from_numpy(batch.labels),
        attention_mask=torch.from_numpy(batch.attention_mask),
    ).loss
    theirs.backward()
    assert loss == pytest.approx(float(theirs.detach()), rel=1e-6)
    for name, item in model.trained.items():
        torch.testing.assert_close(gradients[name], item.grad, rtol=1e-4, atol=1e-7)
    norm = torch.nn.utils.get_total_norm([item.grad for item in model.trained.values()])
    assert update == Update(pytest.approx(float(norm), rel=1e-5), applied=True)


def test_the_micro_batch_changes_memory_and_not_the_result(model_directory):
    results = {micro: one_step(model_directory, micro) for micro in (1, 4, 8)}
    loss, gradients = results[1][:2]
    for other in (4, 8):
        assert results[other][0] == pytest.approx(loss, rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(results[other][1][name], gradient, rtol=1e-4, atol=1e-7)


def test_the_loss_of_each_target_stands_at_the_position_before_it(model_directory):
    model = load_model(model_directory, torch.float32)
    batch = Rows().collate(range(3))
    losses = token_nll(model, batch, CPU, torch.float32)
    assert losses.shape == (3, batch.labels.shape[1] - 1)
    assert torch.equal(losses > 0, torch.from_numpy(batch.labels[:, 1:] != IGNORED))


def test_bf16_products_keep_trained_weights_in_float32(model_directory):
    lora = Lora(rank=2, alpha=4, dropout=0.0, targets=["q_proj"], train_fully=[])
    model = train_lora(load_model(model_directory, torch.bfloat16), lora, [], {}, seed=1)
    objective = AutogradObjective(model.module.train(), CPU, torch.bfloat16)
    engine = PlainEngine(model, objective, Processes(), dtype=torch.bfloat16, weight_decay=0.0, max_grad_norm=1.0)
    batch = Rows().collate(range(4))
    nll = float(engine.accumulate(batch, batch.targets))
    assert engine.update(1e-3).applied
    assert {item.dtype for item in model.trained.values()} == {torch.float32}
    exact = float(token_nll(load_model(model_directory, torch.float32), batch, CPU, torch.float32).sum())
    assert nll == pytest.approx(exact, rel=1e-2)


def test_a_gradient_that_is_not_finite_changes_no_weight(model_directory):
    model = lora_model(model_directory)
    engine = plain(model)
    before = {name: item.detach().clone() for name, item in model.trained.items()}
    batch = Rows().collate(range(2))
    engine.accumulate(batch, batch.targets)
    next(iter(model.trained.values())).grad[0, 0] = math.nan
    update = engine.update(1e-3)
    assert not update.applied
    assert math.isnan(update.grad_norm)
    for name, item in model.trained.items():
        assert torch.equal(item, before[name]), name


@pytest.mark.parametrize("plain", [plain, fused], ids=["by autograd", "written out"])
def test_an_engine_goes_on_bit_by_bit_from_what_it_saved(model_directory, tmp_path, plain):
    def advance(model, engine, steps):
        stream = TrainingStream(Rows(), GlobalBatch(4, 2), seed=1)
        for step in steps:
            for batch in stream.micro_batches(step):
                engine.accumulate(batch, stream.targets(step))
            engine.update(1e-2)
        return {name: item.detach().clone() for name, item in model.trained.items()}

    straight = lora_model(model_directory, dropout=0.2)
    expected = advance(straight, plain(straight), range(5))
    first = lora_model(model_directory, dropout=0.2)
    engine = plain(first)
    advance(first, engine, range(3))
    save_state(tmp_path, engine, writes=True)
    second = lora_model(model_directory, dropout=0.2)
    engine = plain(second)
    engine.load(tmp_path)
    got = advance(second, engine, range(3, 5))
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def config_for(tmp_path, **batch):
    return build.pretrain_config(tmp_path, batch=BatchRecipe(**batch))


@pytest.mark.parametrize(
    ("batch", "world", "micro"),
    [
        ({"global_sequences": 64}, 1, 8),
        ({"global_sequences": 12}, 2, 6),
        ({"global_sequences": 14}, 2, 7),
        ({"global_sequences": 22}, 2, 1),
        ({"global_sequences": 64, "micro_sequences": 4}, 4, 4),
    ],
)
def test_the_micro_batch_divides_the_share_of_a_process(tmp_path, batch, world, micro):
    assert global_batch(config_for(tmp_path, **batch), Processes(world_size=world), 512).micro_sequences == micro


@pytest.mark.parametrize(
    ("batch", "world", "hint"),
    [
        ({"global_sequences": 10}, 4, "8 or 12"),
        ({"global_sequences": 2}, 4, "Set it to 4"),
        ({"global_sequences": 64, "micro_sequences": 5}, 4, "Set microSequences to 4"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused_with_numbers_that_can(tmp_path, batch, world, hint):
    with pytest.raises(BadInput) as refused:
        global_batch(config_for(tmp_path, **batch), Processes(world_size=world), 512)
    assert hint in refused.value.hint


def test_the_held_out_loss_is_the_mean_over_tokens_and_the_sum_over_characters(model_directory):
    model = load_model(model_directory, torch.float32)
    rows = Rows(5)
    loss = evaluate(lambda batch: token_nll(model, batch, CPU, torch.float32), HeldOut(rows, 123), 2, Processes())
    whole = rows.collate(range(5))
    expected = float(token_nll(model, whole, CPU, torch.float32).double().sum())
    assert loss.targets == whole.targets
    assert loss.per_token == pytest.approx(expected / whole.targets, rel=1e-6)
    assert loss.per_char == pytest.approx(expected / 123, rel=1e-6)
    assert loss.perplexity == pytest.approx(math.exp(loss.per_token))
    assert set(loss.figures("_before")) == {
        "heldout_loss_before",
        "heldout_loss_per_char_before",
        "heldout_perplexity_before",
    }


def test_an_evaluation_gives_way_to_a_stop(model_directory):
    model = load_model(model_directory, torch.float32)
    nll = lambda batch: token_nll(model, batch, CPU, torch.float32)  # noqa: E731
    with pytest.raises(Interrupted):
        evaluate(nll, HeldOut(Rows(5), 1), 2, Processes(), should_stop=lambda: True)


def test_held_out_documents_are_the_same_text_in_another_vocabulary(tmp_path):
    build.base_model(tmp_path)
    old, new = load_tokenizer(tmp_path / "model"), load_tokenizer(build.larger_tokenizer(tmp_path))
    documents = ["我们每天学习。", "  two spaces", "12 metres"]
    tokens = [index for text in documents for index in (new.bos_id, *new.encode(text), new.eos_id)]
    got = tokens_of_other_vocabulary(np.array(tokens, np.uint16), new, old, frozenset({new.bos_id, new.eos_id}))
    assert got.tolist() == [index for text in documents for index in (old.bos_id, *old.encode(text), old.eos_id)]
