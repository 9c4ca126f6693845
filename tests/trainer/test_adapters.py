"""Adapters in every form that peft has written them merge as peft merges them, and others are refused by name."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import peft_models as build
from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights import published
from herdsman_trainer.weights.adapters import LoraSettings, load_adapter
from herdsman_trainer.weights.merge import merge
from herdsman_trainer.weights.published import Published
from herdsman_trainer.weights.reading import open_model_weights
from herdsman_trainer.weights.writing import write_tensors
from imports import sha256

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = build.ROWS + 3
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build.llama(tmp_path_factory.mktemp("base"))


def merged(model, directory):
    return merge(open_model_weights(model), [load_adapter(directory)], tied=False).state_dict()


def by_peft(model, directory, rows=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build.merged_by_peft(model, [directory], rows)


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def changed(model, result):
    before = load_file(model / "model.safetensors")
    return {name for name, tensor in result.items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize(
    "patterns",
    [
        {"rank_pattern": {"q_proj": 4}},
        {"alpha_pattern": {"q_proj": 1, "up_proj": 20}},
        {"rank_pattern": {"q_proj": 4, "down_proj": 1}, "alpha_pattern": {"v_proj": 3}},
        {"rank_pattern": {"layers.0.self_attn.q_proj": 5}},
        {"rank_pattern": {"^model.layers.1.mlp.up_proj": 3}, "alpha_pattern": {"^layers.1.mlp.up_proj": 50}},
        {"rank_pattern": {r".*\.self_attn\.[qk]_proj": 3}},
        {"rank_pattern": {"[qk]_proj": 3, "q_proj": 7}, "alpha_pattern": {"proj": 9, r"\w+_proj": 11}},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"k_proj": 2}, "use_rslora": True},
    ],
    ids=[
        "rank",
        "alpha",
        "both",
        "one layer",
        "from the beginning",
        "expression",
        "the first counts",
        "rank-stabilised",
    ],
)
def test_ranks_and_alphas_of_single_modules_are_found_as_peft_finds_them(tmp_path, base, patterns):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        directory = build.adapter(tmp_path / "adapter", base, full=(), **patterns)
    assert_equal(merged(base, directory), by_peft(base, directory))


def test_the_figures_of_a_module_are_its_own():
    settings = LoraSettings(8, 16.0, rank_pattern={"q_proj": 2}, alpha_pattern={"layers.1.mlp.up_proj": 4.0})
    assert settings.of("model.layers.0.self_attn.q_proj").scale == 8.0
    assert settings.of("model.layers.1.mlp.up_proj").scale == 0.5
    assert settings.of("model.layers.11.mlp.up_proj").scale == 2.0
    assert settings.of("model.layers.0.self_attn.xq_proj").scale == 2.0


def rewrite(directory, change, *, pickled=False):
    """Write the tensors of an adapter under other keys, or as a .bin file."""
    path = directory / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors = change(tensors)
    path.unlink()
    if pickled:
        torch.save(tensors, directory / "adapter_model.bin")
    else:
        write_tensors(path, tensors)


def with_name(key, adapter="default"):
    for part in ("lora_A", "lora_B"):
        key = key.replace(f".{part}.weight", f".{part}.{adapter}.weight")
    return key


def whole_state(tensors):
    """What state_dict of the wrapped model calls them, with the modules that were replaced."""
    wrapped = {}
    for key, tensor in tensors.items():
        if "lora_" in key:
            wrapped[with_name(key)] = tensor
        else:
            stem = key.removesuffix(".weight")
            wrapped[f"{stem}.modules_to_save.default.weight"] = tensor
            wrapped[f"{stem}.original_module.weight"] = torch.zeros(3, 3)
    return wrapped


def without_adapter_name(tensors):
    """As releases before the name was in every key wrote them."""
    return {key.replace(".default", ""): tensor for key, tensor in whole_state(tensors).items()}


def without_prefix(tensors):
    return {key.removeprefix("base_model.model."): tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("change", [dict, whole_state, without_adapter_name, without_prefix])
def test_the_keys_of_every_peft_mean_the_same(tmp_path, base, change, pickled):
    directory = build.adapter(tmp_path / "adapter", base, rows=ROWS)
    expected = by_peft(base, directory, ROWS)
    rewrite(directory, change, pickled=pickled)
    assert_equal(merged(base, directory), expected)


def test_the_keys_are_those_of_pefts_own_state_dict(tmp_path, base):
    directory = build.adapter(tmp_path / "adapter", base, rows=ROWS)
    expected = by_peft(base, directory, ROWS)
    wrapped = build.peft_model(
        base, rows=ROWS, targets=build.PROJECTIONS, full=("embed_tokens", "lm_head"), tied=False, seed=1
    )
    parts = ("lora_", "modules_to_save", "original_module")
    state = {key: value for key, value in wrapped.state_dict().items() if any(part in key for part in parts)}
    assert any("original_module" in key for key in state)
    rewrite(directory, lambda _: state, pickled=True)
    assert_equal(merged(base, directory), expected)


def test_the_configuration_of_the_pinned_peft_is_read(tmp_path, base):
    """The published adapters' files, of a peft of March 2023: a plain pickle and few settings."""
    directory = build.adapter(tmp_path / "adapter", base, rows=ROWS)
    expected = by_peft(base, directory, ROWS)
    rewrite(directory, dict, pickled=True)
    old = {
        "base_model_name_or_path": "./llama-7b",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 6.0,
        "lora_dropout": 0.05,
        "merge_weights": False,
        "modules_to_save": ["embed_tokens", "lm_head"],
        "peft_type": "LORA",
        "r": 2,
        "target_modules": build.PROJECTIONS,
        "task_type": "CAUSAL_LM",
    }
    (directory / "adapter_config.json").write_text(json.dumps(old))
    assert_equal(merged(base, directory), expected)


def edit_config(directory, **changes):
    path = directory / "adapter_config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in config.items() if value != "absent"}))


@pytest.mark.parametrize("targets", [["q_proj", "o_proj"], build.PROJECTIONS], ids=["square", "all"])
def test_fan_in_fan_out_changes_nothing_on_linear_layers_as_with_peft(tmp_path, base, targets):
    directory = build.adapter(tmp_path / "adapter", base, targets=targets, full=())
    edit_config(directory, fan_in_fan_out=True)
    theirs = by_peft(base, directory)
    assert_equal(merged(base, directory), theirs)
    assert len(changed(base, theirs)) == 2 * len(targets)


def test_a_pickled_adapter_is_mapped_and_not_loaded(tmp_path, base):
    directory = build.adapter(tmp_path / "adapter", base, rows=ROWS)
    rewrite(directory, dict, pickled=True)
    tensor = load_adapter(directory).read("base_model.model.lm_head.weight")
    maps = (line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("adapter_model.bin"))
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
    assert any(start <= tensor.data_ptr() < stop for start, stop in spans)


def test_a_published_adapter_is_recognised_by_itself(tmp_path, base, monkeypatch):
    directory = build.adapter(tmp_path / "adapter", base, rows=ROWS)
    rewrite(directory, dict, pickled=True)
    digest = sha256(directory / "adapter_model.bin")
    table = {digest: Published(digest, "Chinese-Alpaca-7B", "adapter", "adapter_model.bin")}
    monkeypatch.setattr(published, "_table", lambda: table)
    _, note = load_adapter(directory).notes
    assert "this is Chinese-Alpaca-7B (the LoRA in adapter_model.bin)" in note


def test_a_changed_value_in_a_pickled_adapter_is_found(tmp_path, base):
    directory = build.adapter(tmp_path / "adapter", base, rows=ROWS)
    rewrite(directory, dict, pickled=True)
    path = directory / "adapter_model.bin"
    needle = load_adapter(directory).read(f"{Q0}.lora_A.weight").numpy().tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(needle) + 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"has the CRC-32 .* and was saved with") as caught:
        load_adapter(directory)
    assert caught.value.file == str(path)


def nothing(_tensors):
    return {}


def emptied(tensors):
    return {key: torch.empty(0) if "embed" in key else tensor for key, tensor in tensors.items()}


def with_base(tensors):
    return {**tensors, f"{Q0}.base_layer.weight": torch.ones(16, 16)}


def named_of_two(tensors):
    first, second = ({with_name(key, name): value for key, value in tensors.items()} for name in ("a", "b"))
    return {key: value for key, value in (first | second).items() if "layers.0" in key and ".a." in key} | {
        key: value for key, value in second.items() if "layers.1" in key
    }


def twice(tensors):
    return {**tensors, with_name(f"{Q0}.lora_A.weight"): tensors[f"{Q0}.lora_A.weight"]}


def with_magnitude(tensors):
    return {**tensors, f"{Q0}.lora_magnitude_vector.weight": torch.ones(16)}


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize(
    ("change", "says", "remedy"),
    [
        (nothing, r"holds no tensors: the file of \d+ bytes has no keys", "filters the keys again"),
        (emptied, r"embed_tokens.weight is empty \(0\)", "gather the parameters"),
        (with_base, "base_layer.weight is the base's own weight", "save_pretrained"),
        (named_of_two, "holds the adapters a, b", "Save each of them by itself"),
        (twice, "lora_A.default.weight are the same tensor|lora_A.weight are the same tensor", "Save the adapter anew"),
        (with_magnitude, "neither a LoRA matrix nor a whole weight", "merge_and_unload"),
    ],
)
def test_weights_that_are_no_adapter_are_refused_with_the_reason(tmp_path, base, change, says, remedy, pickled):
    directory = build.adapter(tmp_path / "adapter", base, rows=ROWS)
    rewrite(directory, change, pickled=pickled)
    with pytest.raises(BadInput, match=says) as caught:
        load_adapter(directory)
    assert caught.value.file == str(directory / ("adapter_model.bin" if pickled else "adapter_model.safetensors"))
    assert remedy in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"r": "absent"}, "r must be a positive number and is missing"),
        ({"lora_alpha": "absent"}, "lora_alpha must be a positive number and is missing"),
        ({"r": 3}, r"has rank 2 and adapter_config.json says r = 3"),
        ({"rank_pattern": {"q_proj": 5}}, r"q_proj.weight has rank 2 and adapter_config.json says rank_pattern = 5"),
        ({"rank_pattern": {"q_proj": "4"}}, "q_proj must be a positive number and is '4'"),
        ({"rank_pattern": {"(q_proj": 4}}, r"'\(q_proj' of rank_pattern is no regular expression"),
        ({"alpha_pattern": [1]}, r"alpha_pattern must be an object and is \[1\]"),
        ({"enable_lora": [True, False]}, "parts of a fused projection"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(tmp_path, base, settings, says):
    directory = build.adapter(tmp_path / "adapter", base, full=())
    edit_config(directory, **settings)
    with pytest.raises(BadInput, match=says) as caught:
        load_adapter(directory)
    assert caught.value.file.startswith(str(directory))
    assert caught.value.hint


@pytest.mark.parametrize("damage", ["cut", "html", "legacy"])
def test_a_damaged_pickle_is_refused_by_name(tmp_path, base, damage):
    directory = build.adapter(tmp_path / "adapter", base, full=())
    rewrite(directory, dict, pickled=True)
    path = directory / "adapter_model.bin"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "html":
        path.write_bytes(b"<html>")
    else:
        torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    with pytest.raises(BadInput) as caught:
        load_adapter(directory)
    assert caught.value.file == str(path)
    assert caught.value.hint
