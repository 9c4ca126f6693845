"""Loss on text: every token of a document is predicted once, from as many tokens before it as the context holds."""

import math
from collections.abc import Sequence
from typing import Any

from herdsman_trainer.benchmarks.forward import Check, continuation_nll
from herdsman_trainer.tokenizers import TextTokenizer

Window = tuple[list[int], int]
"""Ids, and the position of the first that is predicted."""


def windows(tokens: Sequence[int], start: int, context: int) -> list[Window]:
    """Return the windows of a document: `start` is the id before its first token, `context` the longest input.

    The first predicts `context` tokens, each further one as many with one token of context, and the last one keeps as
    much context as fits: the windows of lm-evaluation-harness, so that perplexities are the same.
    """
    ids = [start, *tokens]
    found: list[Window] = []
    done = 0
    while done < len(tokens):
        end = min(len(tokens), done + context)
        first = 0 if done == 0 else max(0, end - context)
        found.append((ids[first : end + 1], done + 1 - first))
        done = end
    return found


def document_losses(
    model: Any, tokenizer: TextTokenizer, texts: Sequence[str], context: int, check: Check
) -> list[tuple[float, int]]:
    """Return (summed loss in nats, tokens) of each document.

    It starts behind BOS, or behind EOS where a tokenizer has no BOS, so that its first token is predicted too.
    """
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    encoded = tokenizer.encode_batch(list(texts))
    cut = [windows(tokens, start, context) for tokens in encoded]
    losses = iter(continuation_nll(model, [window for each in cut for window in each], check))
    return [
        (math.fsum(loss for _ in each for loss in next(losses)), len(tokens))
        for each, tokens in zip(cut, encoded, strict=True)
    ]
