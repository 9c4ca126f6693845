"""The engine `transformers`: Hugging Face weights, a merged model or a base with adapters merged in memory."""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from herdsman_server.batching.batching_engine import BatchingEngine
from herdsman_server.batching.extents import BLOCK, blocks_of
from herdsman_server.batching.kv_memory import KvMemory, bytes_per_token
from herdsman_server.batching.llama import BatchedLlama, why_not
from herdsman_server.batching.passes import Passes
from herdsman_server.memory_share import room
from herdsman_server.one_at_a_time import OneAtATime
from herdsman_trainer.errors import BadInput, Temporary
from herdsman_trainer.weights.architecture import check_tensors, model_settings
from herdsman_trainer.weights.chain import CONFIG_FILE, Chain
from herdsman_trainer.weights.in_memory import model_in_memory
from herdsman_trainer.weights.vocabulary import merged_config

log = logging.getLogger(__name__)

PARALLEL = {"cpu": 8, "cuda": 64}
"""Answers at once, unless something else is said: a GPU reads its weights once for all of them."""
BUDGET = {"cpu": 256, "cuda": 1024}
"""Tokens of prompts in one pass at most."""
SHORTEST = 256
"""A conversation that has less room than this (or than the model takes) is none."""

Engine = BatchingEngine | OneAtATime


def load_engine(
    chain: Chain,
    device: str,
    *,
    parallel: int | None = None,
    quantisation: str | None = None,
    hot: bool = False,
) -> Engine:
    """Merge a chain in memory and return the engine that serves it.

    On the CPU weights are float32, which is what it computes fastest in; on a GPU they keep their type. `chain` was
    opened with that type. Raises BadInput where the model would not load strictly, Temporary where memory is short.
    """
    plan = chain.merge.plan
    where = str(chain.model.path)
    if device == "cuda" and not torch.cuda.is_available():
        hint = "Set compute.gpusPerNode to 0, or run on a machine with a GPU and its driver."
        raise BadInput("The server is to use a GPU and finds none.", hint=hint)
    config = merged_config(chain.model.config, plan, chain.tokenizer.pad_id)
    check_tensors(plan.specs, config, where)
    if getattr(model_settings(config, where), "max_position_embeddings", None) is None:
        raise BadInput("config.json has no max_position_embeddings.", file=str(Path(where) / CONFIG_FILE))
    model = model_in_memory(chain, config)
    model.generation_config = GenerationConfig()  # what a request leaves out is decided here, not by the model's files
    return engine_of(model.to(device), parallel=parallel, quantisation=quantisation, hot=hot)


def engine_of(
    model: Any,
    *,
    parallel: int | None = None,
    quantisation: str | None = None,
    kv_tokens: int | None = None,
    budget: int | None = None,
    hot: bool = False,
) -> Engine:
    """Return the engine of a model that is loaded; one that batches takes it apart.

    `kv_tokens` is the room for conversations, all that is left unless given; `hot` leaves some of it for adapters that
    come later. Raises Temporary where too little is left.
    """
    if (reason := why_not(model)) is not None:
        log.warning("Answers are computed one at a time: %s, and batches are made of Llamas only.", reason)
        if quantisation is not None:
            hint = "Leave spec.quantisation out, or serve a GGUF file with the engine llamacpp."
            raise BadInput(f"The model cannot be quantised here: {reason}.", hint=hint)
        return OneAtATime(model)
    kind = model.device.type
    longest: int = model.config.max_position_embeddings
    slots = parallel or PARALLEL[kind]
    with torch.inference_mode():
        llama = BatchedLlama(model, context_length=longest, quantisation=quantisation)
    each = bytes_per_token(len(llama.layers), llama.groups, llama.width, llama.dtype)
    most = slots * blocks_of(longest)
    blocks = blocks_of(kv_tokens) if kv_tokens else min(room(llama.device, hot=hot) // each // BLOCK, most)
    tokens = blocks * BLOCK
    context = min(longest, tokens)
    if context < min(SHORTEST, longest):
        message = (
            f"The weights leave room for {tokens} tokens of conversation, at {each} bytes each, and that is too little."
        )
        hint = "Raise compute.resources.memory or take a larger GPU, or set spec.quantisation: int8 or int4."
        raise Temporary(message, reason="OutOfMemory", hint=hint)
    memory = KvMemory(len(llama.layers), tokens, llama.groups, llama.width, llama.dtype, llama.device)
    log.info(
        "Weights take %.2f GiB; there is room for %d tokens of %d conversations of up to %d.",
        llama.weight_bytes / 2**30,
        tokens,
        slots,
        context,
    )
    passes = Passes(llama, memory, slots, context)
    return BatchingEngine(passes, parallel=slots, context_length=context, budget=budget or BUDGET[kind])
