"""Compares what a small merged model answers with what peft's own merge of the same files answers."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from herdsman_trainer.weights.chain import Chain
from herdsman_trainer.weights.merge import EMBEDDING
from herdsman_trainer.weights.vocabulary import is_tied

log = logging.getLogger(__name__)

PROBE_PARAMETERS = 8_000_000
"""The largest model that is compared: it is held in memory twice, in float32."""
PROBE_TOKENS = 32
UNITS = 2.0
"""How far a value may differ, in units of the stored type's last place: sums are made in another order, and a value
that falls on the other side of a rounding boundary differs by one. What that makes of logits depends on the model."""
NOTHING = 1e-5
"""As a share of a matrix' largest value: what is this small may be left of a sum that cancels out."""


class MergeMismatchError(RuntimeError):
    """The merged model does not answer as peft's merge does: a fault of the merge, never of its input."""


def probe(chain: Chain, directory: Path) -> float | None:
    """Return how far the logits of the written model lie from peft's, as a share of the largest logit.

    None where they are not compared: models of more than PROBE_PARAMETERS, and adapters that peft itself cannot read
    or reads in another way. Raises MergeMismatchError where a weight lies further from peft's than UNITS.
    """
    plan = chain.merge.plan
    size = sum(spec.nbytes // spec.dtype.itemsize for spec in plan.specs)
    dtype = plan.tensors[EMBEDDING].spec.dtype
    same_head = plan.tied == is_tied(chain.model.config)
    if size > PROBE_PARAMETERS or not same_head or not dtype.is_floating_point:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reference = _merged_by_peft(chain)
        except Exception as error:  # noqa: BLE001 - whatever peft says about files that we read
            log.warning("The merge was not compared with peft's: %s", error)
            return None
    stride = max(1, plan.vocab_size // PROBE_TOKENS)  # so that ids of old and new rows are among them
    ids = torch.arange(PROBE_TOKENS)[None] * stride % plan.vocab_size
    theirs, ours = reference.to(dtype).float(), _load(directory)
    _compare(ours.state_dict(), theirs.state_dict(), torch.finfo(dtype).eps)
    expected = _logits(theirs, ids)
    return float((_logits(ours, ids) - expected).abs().max() / expected.abs().max().clamp_min(1e-9))


def _compare(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], unit: float) -> None:
    for name, expected in theirs.items():
        difference = (ours[name] - expected).abs()
        if not bool((difference <= UNITS * unit * expected.abs() + NOTHING * expected.abs().max()).all()):
            raise MergeMismatchError(f"{name} differs from peft's merge by up to {float(difference.max()):.2g}")


def _merged_by_peft(chain: Chain) -> Any:
    from peft import LoraConfig, PeftModel  # like the modelling code, too much memory where nothing is compared

    model = _load(chain.model.path)
    for adapter in chain.adapters:
        if adapter.embedding_rows is not None:
            model.resize_token_embeddings(adapter.embedding_rows, mean_resizing=False)
        wrapped = PeftModel(model, LoraConfig.from_pretrained(adapter.directory))
        result = wrapped.load_adapter(str(adapter.directory), "default")
        if missing := [key for key in result.missing_keys if "lora_" in key or "modules_to_save" in key]:
            raise ValueError(f"peft does not find {missing[0]} in {adapter.directory}")
        model = wrapped.merge_and_unload()
    return model


def _load(directory: Path) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True, use_safetensors=True)


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(ids).logits
    return logits
