"""The merge equals peft's, stays tied where the base is, and refuses what does not fit."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import peft_models as build
from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights import merge as merge_module
from herdsman_trainer.weights.adapters import load_adapter
from herdsman_trainer.weights.merge import EMBEDDING, HEAD, merge
from herdsman_trainer.weights.reading import open_model_weights, open_safetensors
from herdsman_trainer.weights.writing import write_tensors

BIG = build.ROWS + 9


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build.llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tied_base(tmp_path_factory):
    return build.llama(tmp_path_factory.mktemp("tied"), tied=True)


def merged(model, adapters, *, tied=False, dtype=None):
    return merge(open_model_weights(model), [load_adapter(directory) for directory in adapters], tied=tied, dtype=dtype)


def assert_equal(ours, theirs, *, atol=1e-6):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], atol=atol, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (None, {"full": ()}),
        (BIG, {}),
        (None, {"full": (), "use_rslora": True, "r": 4}),
        (None, {"targets": ["q_proj"], "full": ("lm_head",)}),
    ],
    ids=["LoRA alone", "with a larger vocabulary", "rank-stabilised", "one target and the head"],
)
def test_one_adapter_merges_as_peft_merges_it(tmp_path, base, rows, options):
    directory = build.adapter(tmp_path / "adapter", base, rows=rows, **options)
    assert_equal(merged(base, [directory]).state_dict(), build.merged_by_peft(base, [directory], rows))


def two_adapters(tmp_path, base):
    first = build.adapter(tmp_path / "first", base, rows=BIG, seed=1)
    second = build.adapter(tmp_path / "second", base, rows=BIG + 1, seed=2, r=3, targets=["q_proj", "up_proj"])
    return first, second


def test_two_adapters_merge_in_order_as_peft_merges_them(tmp_path, base):
    first, second = two_adapters(tmp_path, base)
    plain = build.adapter(tmp_path / "plain", base, full=(), seed=3)
    ours = merged(base, [first, second, plain]).state_dict()
    model = build.load(base)
    for directory, rows in ((first, BIG), (second, BIG + 1), (plain, BIG + 1)):
        model.resize_token_embeddings(rows, mean_resizing=False)
        model = build.PeftModel.from_pretrained(model, directory).merge_and_unload()
    assert_equal(ours, model.state_dict())


def test_the_order_matters_where_a_matrix_is_replaced(tmp_path, base):
    first = build.adapter(tmp_path / "first", base, seed=1)
    second = build.adapter(tmp_path / "second", base, seed=2)
    forward, backward = merged(base, [first, second]), merged(base, [second, first])
    assert torch.equal(
        forward.tensor(EMBEDDING), load_file(second / "adapter_model.safetensors")["base_model.model." + EMBEDDING]
    )
    assert not torch.equal(forward.tensor(EMBEDDING), backward.tensor(EMBEDDING))


def test_swapped_adapters_whose_vocabulary_grew_are_refused(tmp_path, base):
    first, second = two_adapters(tmp_path, base)
    with pytest.raises(BadInput, match=f"has {BIG} rows and the model before it already has {BIG + 1}") as caught:
        merged(base, [second, first])
    assert caught.value.file == str(first)
    assert "order" in caught.value.hint


def test_a_replacement_forgets_the_updates_before_it(tmp_path, base):
    update = build.adapter(tmp_path / "update", base, targets=["lm_head"], full=())
    whole = build.adapter(tmp_path / "whole", base, targets=["q_proj"], full=("lm_head",))
    result = merged(base, [update, whole])
    assert [type(change).__name__ for change in result.plan.tensors[HEAD].changes] == ["Replacement"]
    result = merged(base, [whole, update])
    assert [type(change).__name__ for change in result.plan.tensors[HEAD].changes] == ["Replacement", "LowRankUpdate"]
    assert_equal(result.state_dict(), build.merged_by_peft(base, [whole, update]))


def test_sums_are_made_in_float32_and_rounded_once(tmp_path):
    base = build.llama(tmp_path / "base", dtype=torch.bfloat16)
    adapters = [build.adapter(tmp_path / str(seed), base, full=(), seed=seed) for seed in (1, 2)]
    ours = merged(base, adapters).state_dict()
    exact = {name: tensor.double() for name, tensor in load_file(base / "model.safetensors").items()}
    for directory in adapters:
        factors = load_file(directory / "adapter_model.safetensors")
        for key in factors:
            if key.endswith("lora_A.weight"):
                name = key.removeprefix("base_model.model.").replace("lora_A.", "")
                exact[name] = (
                    exact[name] + 3 * factors[key.replace("lora_A", "lora_B")].double() @ factors[key].double()
                )
    for name, tensor in ours.items():
        assert tensor.dtype == torch.bfloat16
        # float32 sums may fall on the other side of a rounding boundary than exact ones; one in thousands does.
        assert (tensor != exact[name].to(torch.bfloat16)).double().mean() < 0.01, name


def test_the_result_takes_the_type_that_is_asked_for(tmp_path, base):
    directory = build.adapter(tmp_path / "adapter", base, full=())
    ours = merged(base, [directory], dtype=torch.float16).state_dict()
    assert {tensor.dtype for tensor in ours.values()} == {torch.float16}


def test_layers_stored_the_other_way_round_get_the_transposed_product(tmp_path, base):
    directory = build.adapter(tmp_path / "adapter", base, targets=["up_proj"], full=())
    files = load_file(directory / "adapter_model.safetensors")
    turned = {
        key.replace("lora_A", "X").replace("lora_B", "lora_A").replace("X", "lora_B"): tensor.T.contiguous()
        for key, tensor in files.items()
    }
    straight = merged(base, [directory]).state_dict()
    write_tensors(directory / "adapter_model.safetensors", turned)
    edit_config(directory, fan_in_fan_out=True)
    assert_equal(merged(base, [directory]).state_dict(), straight)


def test_blocks_of_rows_make_the_same_tensor(tmp_path, base, monkeypatch):
    directory = build.adapter(tmp_path / "adapter", base)
    whole = merged(base, [directory]).state_dict()
    monkeypatch.setattr(merge_module, "PASS_VALUES", 50)
    result = merged(base, [directory])
    spec = result.plan.tensors["model.layers.0.mlp.up_proj.weight"].spec
    assert [len(block) for block in result.blocks(spec)] == [3] * 8
    assert_equal(result.state_dict(), whole)


def test_blocks_are_equally_long_so_that_none_is_summed_in_another_order(tmp_path, base, monkeypatch):
    directory = build.adapter(tmp_path / "adapter", base)
    result = merged(base, [directory])
    spec = result.plan.tensors["model.layers.0.mlp.up_proj.weight"].spec
    monkeypatch.setattr(merge_module, "PASS_VALUES", 7 * spec.shape[1])
    assert [len(rows.values) for rows in result.rows(spec.name)] == [6] * 4
    assert [len(rows.values) for rows in result.rows(spec.name, multiple=5)] == [5, 5, 5, 5, 4]


def test_a_tied_base_stays_tied_when_its_embedding_is_replaced(tmp_path, tied_base):
    directory = build.adapter(tmp_path / "adapter", tied_base, rows=BIG, full=("embed_tokens",), tied=True)
    stored = load_file(directory / "adapter_model.safetensors")
    assert "base_model.model.lm_head.weight" in stored, "peft repeats the tied matrix, which is what is tested here"
    result = merged(tied_base, [directory], tied=True)
    assert result.plan.tied
    assert HEAD not in result.plan.tensors
    assert torch.equal(result.tensor(EMBEDDING), stored["base_model.model." + EMBEDDING])


def test_a_second_adapter_without_a_head_keeps_a_tied_base_tied(tmp_path, tied_base):
    first = build.adapter(tmp_path / "first", tied_base, rows=BIG, full=("embed_tokens",), tied=True)
    second = build.adapter(tmp_path / "second", tied_base, rows=BIG, targets=["q_proj"], full=())
    assert merged(tied_base, [first, second], tied=True).plan.tied


def test_an_adapter_with_a_head_of_its_own_unties_the_base(tmp_path, tied_base):
    directory = untied_adapter(tmp_path / "adapter", tied_base)
    result = merged(tied_base, [directory], tied=True)
    stored = load_file(directory / "adapter_model.safetensors")
    assert not result.plan.tied
    assert torch.equal(result.tensor(HEAD), stored["base_model.model." + HEAD])
    assert torch.equal(result.tensor(EMBEDDING), stored["base_model.model." + EMBEDDING])


def untied_adapter(directory, tied_base):
    build.adapter(directory, tied_base, rows=BIG, full=("embed_tokens",), tied=True)
    stored = load_file(directory / "adapter_model.safetensors")
    stored["base_model.model." + HEAD] = stored["base_model.model." + HEAD] + 1
    write_tensors(directory / "adapter_model.safetensors", stored)
    return directory


def edit_config(directory, **changes):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(directory, change):
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    write_tensors(path, tensors)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def rename_layer(tensors):
    for half in ("lora_A", "lora_B"):
        tensors[f"base_model.model.model.layers.7.self_attn.q_proj.{half}.weight"] = tensors.pop(f"{Q0}.{half}.weight")


def widen(tensors):
    tensors[f"{Q0}.lora_A.weight"] = torch.ones(2, 20)


def widen_embedding(tensors):
    tensors["base_model.model." + EMBEDDING] = torch.ones(BIG, 20)


def grow_embedding_alone(tensors):
    tensors["base_model.model." + EMBEDDING] = torch.ones(BIG + 1, 16)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (rename_layer, "changes model.layers.7.self_attn.q_proj.weight, which the base does not have"),
        (widen, "is 16 x 20 and the base's matrix is 16 x 16"),
        (widen_embedding, f"is {BIG} x 20 and the base's is {build.ROWS} x 16"),
        (grow_embedding_alone, f"embed_tokens.weight has {BIG + 1} rows and lm_head.weight has {BIG}"),
    ],
    ids=["target absent", "LoRA of another size", "embedding of another width", "head did not grow"],
)
def test_an_adapter_that_does_not_fit_the_base_is_refused(tmp_path, base, change, says):
    directory = build.adapter(tmp_path / "adapter", base, rows=BIG)
    edit_tensors(directory, change)
    with pytest.raises(BadInput, match=says) as caught:
        merged(base, [directory])
    assert caught.value.file == str(directory)
    assert caught.value.hint


def test_a_low_rank_head_on_a_tied_base_is_refused(tmp_path, base, tied_base):
    directory = build.adapter(tmp_path / "adapter", base, targets=["lm_head"], full=())
    with pytest.raises(BadInput, match="LoRA on lm_head, which the base ties"):
        merged(tied_base, [directory], tied=True)


def drop_a(tensors):
    del tensors[f"{Q0}.lora_A.weight"]


def add_unknown(tensors):
    tensors[f"{Q0}.lora_magnitude_vector"] = torch.ones(16)


def empty_embedding(tensors):
    tensors["base_model.model." + EMBEDDING] = torch.ones(0)


def swap_halves(tensors):
    tensors[f"{Q0}.lora_A.weight"], tensors[f"{Q0}.lora_B.weight"] = (
        tensors[f"{Q0}.lora_B.weight"],
        tensors[f"{Q0}.lora_A.weight"],
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop_a, "only one of lora_A and lora_B"),
        (add_unknown, "neither a LoRA matrix nor a whole weight"),
        (empty_embedding, "is empty"),
        (swap_halves, "cannot be multiplied|has rank"),
        (lambda tensors: tensors.clear(), "holds no tensors"),
    ],
)
def test_damaged_adapter_weights_are_refused(tmp_path, base, change, says):
    directory = build.adapter(tmp_path / "adapter", base)
    edit_tensors(directory, change)
    with pytest.raises(BadInput, match=says) as caught:
        load_adapter(directory)
    assert caught.value.file == str(directory / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"rank_pattern": {"q_proj": 4}}, "has rank 2 and adapter_config.json says rank_pattern = 4"),
        ({"peft_type": "IA3"}, "type IA3"),
        ({"r": 5}, "rank 2 and adapter_config.json says r = 5"),
        ({"r": 0}, "r must be a positive number"),
        ({"lora_alpha": "16"}, "lora_alpha must be a positive number"),
    ],
    ids=lambda value: str(value),
)
def test_settings_under_which_the_formula_does_not_hold_are_refused(tmp_path, base, settings, says):
    directory = build.adapter(tmp_path / "adapter", base, full=())
    edit_config(directory, **settings)
    with pytest.raises(BadInput, match=says):
        load_adapter(directory)


def test_an_adapter_directory_without_config_or_weights_is_refused(tmp_path, base):
    directory = build.adapter(tmp_path / "adapter", base, full=())
    (directory / "adapter_model.safetensors").unlink()
    with pytest.raises(BadInput, match="neither adapter_model"):
        load_adapter(directory)
    (directory / "adapter_config.json").unlink()
    with pytest.raises(BadInput, match="missing"):
        load_adapter(directory)


def test_a_published_pickle_adapter_is_read_without_running_its_code_and_noted(tmp_path, base):
    directory = build.adapter(tmp_path / "adapter", base)
    before = merged(base, [directory]).state_dict()
    with open_safetensors(directory / "adapter_model.safetensors") as files:
        torch.save({name: tensor.clone() for name, tensor in files}, directory / "adapter_model.bin")
    (directory / "adapter_model.safetensors").unlink()
    read = load_adapter(directory)
    assert "weights_only" in read.notes[0]
    assert_equal(merged(base, [directory]).state_dict(), before, atol=0)


class Hostile:
    def __reduce__(self):
        return (print, ("run",))


def test_a_pickle_with_code_is_refused(tmp_path, base, capsys):
    directory = build.adapter(tmp_path / "adapter", base, full=())
    (directory / "adapter_model.safetensors").unlink()
    torch.save({"x": Hostile()}, directory / "adapter_model.bin")
    with pytest.raises(BadInput, match="asks for print"):
        load_adapter(directory)
    assert capsys.readouterr().out == ""


def test_the_embedding_rows_of_an_adapter_are_known(tmp_path, base):
    assert load_adapter(build.adapter(tmp_path / "with", base, rows=BIG)).embedding_rows == BIG
    without = load_adapter(build.adapter(tmp_path / "without", base, full=()))
    assert without.embedding_rows is None
    assert replace(without.settings, rank_stabilised=True).scale == pytest.approx(6 / 2**0.5)
