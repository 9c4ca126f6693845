"""Adapters are written once, completely, and peft reads them."""

import warnings

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import peft_models as build
from herdsman_trainer.weights.adapter_writing import IncompleteAdapterError, adapter_keys, write_adapter
from herdsman_trainer.weights.adapters import LoraSettings, load_adapter

SETTINGS = LoraSettings(rank=2, alpha=6)
TARGETS = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)]
FULL = ["model.embed_tokens.weight", "lm_head.weight"]


def trained(full=FULL):
    torch.manual_seed(5)
    shapes = {"lora_A.weight": (2, 16), "lora_B.weight": (16, 2)}
    keys = sorted(adapter_keys(TARGETS, full))
    return {key: torch.randn(next((shapes[end] for end in shapes if key.endswith(end)), (40, 16))) for key in keys}


def write(directory, tensors, **options):
    arguments = {"settings": SETTINGS, "lora_targets": TARGETS, "full": FULL, **options}
    return write_adapter(directory, tensors, **arguments)


def test_peft_loads_a_written_adapter_with_every_tensor(tmp_path):
    tensors = trained()
    written = write(tmp_path, tensors, dropout=0.05, base_model="base")
    assert set(written) == {"adapter_model.safetensors", "adapter_config.json", "tensor-digests.json"}
    base = build.load(build.llama(tmp_path / "base"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(base, tmp_path)
    state = model.state_dict()
    for key, tensor in tensors.items():
        places = [name for name in state if name.replace(".default", "").replace("modules_to_save.", "") == key]
        assert places, key
        assert any(torch.equal(state[name], tensor) for name in places), key


def test_a_written_adapter_is_read_back_by_name(tmp_path):
    write(tmp_path, trained())
    adapter = load_adapter(tmp_path)
    assert adapter.settings == SETTINGS
    assert list(adapter.lora) == TARGETS
    assert set(adapter.full) == set(FULL)


def test_an_adapter_of_embeddings_alone_has_no_lora_keys(tmp_path):
    full = FULL[:1]
    tensors = {"base_model.model.model.embed_tokens.weight": torch.ones(40, 16)}
    write_adapter(tmp_path, tensors, settings=SETTINGS, lora_targets=[], full=full, tied=True)
    adapter = load_adapter(tmp_path)
    assert (list(adapter.full), dict(adapter.lora)) == (full, {})
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda tensors: tensors.popitem(), "missing"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "extra"),
        (lambda tensors: tensors.update({next(iter(tensors)): torch.ones(0, 16)}), "is empty"),
        (lambda tensors: tensors.update({next(iter(tensors)): torch.full((2, 2), torch.nan)}), "not finite"),
    ],
    ids=["one missing", "one too many", "partitioned away", "not a number"],
)
def test_an_incomplete_adapter_is_never_written(tmp_path, spoil, says):
    tensors = trained()
    spoil(tensors)
    with pytest.raises(IncompleteAdapterError, match=says):
        write(tmp_path, tensors)
    assert not (tmp_path / "adapter_model.safetensors").exists()
