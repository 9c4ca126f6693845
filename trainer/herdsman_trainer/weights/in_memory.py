"""A chain as a model of transformers: base and adapters merged in memory, ready to answer."""

from collections.abc import Mapping
from typing import Any

from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM

from herdsman_trainer.weights.architecture import model_settings
from herdsman_trainer.weights.chain import Chain
from herdsman_trainer.weights.merge import EMBEDDING, HEAD


def model_in_memory(chain: Chain, config: Mapping[str, Any]) -> Any:
    """Return the model of a chain with the config.json of its result, frozen, in the type the chain was opened with.

    Weights are read once and held once. Raises BadInput where config.json describes no model, and RuntimeError where
    the weights would not load strictly (check_tensors says so with a sentence, before anything is read).
    """
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(model_settings(config, str(chain.model.path)))
    state = chain.merge.state_dict()
    if chain.merge.plan.tied:
        state[HEAD] = state[EMBEDDING]
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    return model.requires_grad_(False).eval()
