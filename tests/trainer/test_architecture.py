"""The tensors that a config.json calls for are those of transformers' own model."""

import pytest

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.architecture import LLAMA_DEFAULTS, expected_tensors, llama_config, meta_model

SMALL = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": None, "head_dim": None},
        {"head_dim": 8, "num_key_value_heads": 1},
        {"tie_word_embeddings": True},
        {"attention_bias": True},
        {"mlp_bias": True, "attention_bias": True},
        {"model_type": "qwen2"},
    ],
    ids=lambda changes: ", ".join(changes) or "a plain one",
)
def test_they_are_those_of_transformers(changes):
    config = {**SMALL, **changes}
    theirs = {name: tuple(tensor.shape) for name, tensor in meta_model(config, "here").state_dict().items()}
    if config.get("tie_word_embeddings"):
        del theirs["lm_head.weight"]
    ours = expected_tensors(config, "here")
    assert ours == theirs


def test_figures_that_are_left_out_are_those_of_transformers():
    ours = llama_config()
    assert {name: ours[name] for name in LLAMA_DEFAULTS} == LLAMA_DEFAULTS


@pytest.mark.parametrize("changes", [{"hidden_size": "16"}, {"num_hidden_layers": 0}, {"model_type": "mine"}])
def test_a_config_that_describes_no_model_is_refused(changes):
    with pytest.raises(BadInput, match=r"config\.json does not describe a model") as caught:
        expected_tensors({**SMALL, **changes}, "here")
    assert caught.value.file == "here"
