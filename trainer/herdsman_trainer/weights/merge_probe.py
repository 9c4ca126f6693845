"""Compares what a small merged model answers with what peft's own merge of the same files answers."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import LlamaForCausalLM

from herdsman_trainer.weights.chain import Chain
from herdsman_trainer.weights.merge import EMBEDDING
from herdsman_trainer.weights.vocabulary import is_tied

log = logging.getLogger(__name__)

PROBE_PARAMETERS = 8_000_000
"""The largest model that is compared: it is held in memory twice, in float32."""
PROBE_TOKENS = 32
BOUND = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""How far logits may differ, as a share of the largest: sums are made in another order, and a value that falls on the
other side of a rounding boundary differs by one unit of the stored type."""


class MergeMismatchError(RuntimeError):
    """The merged model does not answer as peft's merge does: a fault of the merge, never of its input."""


def probe(chain: Chain, directory: Path) -> float | None:
    """Return how far the logits of the written model lie from peft's, as a share of the largest logit.

    None where they are not compared: models of more than PROBE_PARAMETERS, and adapters that peft itself cannot read
    or reads in another way. Raises MergeMismatchError where they lie further apart than BOUND.
    """
    plan = chain.merge.plan
    size = sum(spec.nbytes // spec.dtype.itemsize for spec in plan.specs)
    dtype = plan.tensors[EMBEDDING].spec.dtype
    same_head = plan.tied == is_tied(chain.model.config)
    if size > PROBE_PARAMETERS or not same_head or dtype not in BOUND:
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
    theirs = _logits(reference.to(dtype).float(), ids)
    ours = _logits(_load(directory), ids)
    difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-9))
    if not difference <= BOUND[dtype]:
        raise MergeMismatchError(
            f"the logits of {directory} differ from peft's merge by {difference:.2g} of the largest"
        )
    return difference


def _merged_by_peft(chain: Chain) -> Any:
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
    return LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True, use_safetensors=True)


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(ids).logits
    return logits
