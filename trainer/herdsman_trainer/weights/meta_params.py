"""Reads params.json of Meta's checkpoints, and makes the config.json that transformers needs of it.

What params.json leaves out follows from what was published: the length of the context, and how Llama 3.1 and 3.2 scale
the rotary embedding, of which it only says that they do.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.reading import read_json_object

PARAMS_FILE = "params.json"
WITH_PARAMS = "Meta's weights come with a params.json of their own: copy it from the same source."
LLAMA_3_THETA = 500000.0
SMALL_LLAMA_3_2 = {(2048, 16), (3072, 28)}
"""dim and n_layers of Llama 3.2 1B and 3B, whose scaling is by 32 and not by 8."""


@dataclass(frozen=True)
class MetaParams:
    """The figures of params.json."""

    path: Path
    dim: int
    layers: int
    heads: int
    kv_heads: int
    norm_eps: float
    rope_theta: float
    vocab_size: int | None
    """None where it says -1, which means that of the tokenizer."""
    scaling: float | None
    """By how much the rotary embedding is scaled, as Llama 3.1 does it."""
    context: int

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.heads

    @property
    def rope(self) -> dict[str, Any]:
        """Return the member rope_parameters of config.json."""
        if self.scaling is None:
            return {"rope_type": "default", "rope_theta": self.rope_theta}
        return llama3_rope(self.rope_theta, self.scaling)


def llama3_rope(theta: float, factor: float) -> dict[str, Any]:
    """Return rope_parameters of Llama 3.1 and later: frequencies below those of 8,192 tokens are scaled."""
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def read_params(directory: Path) -> MetaParams:
    """Read params.json; raises BadInput where it is missing, lacks a figure, or its figures do not go together."""
    path = directory / PARAMS_FILE
    given = read_json_object(path, remedy=WITH_PARAMS)
    if isinstance(given.get("model"), dict):  # as Code Llama has it
        given = given["model"]
    dim, layers, heads = (_count(given, name, path) for name in ("dim", "n_layers", "n_heads"))
    kv_heads = _count(given, "n_kv_heads", path) if given.get("n_kv_heads") is not None else heads
    if dim % heads or heads % kv_heads or (dim // heads) % 2:
        message = f"dim {dim}, n_heads {heads} and n_kv_heads {kv_heads} do not make heads of equal, even width."
        raise BadInput(message, file=str(path), hint=WITH_PARAMS)
    vocab_size = given.get("vocab_size", -1)
    eps, theta = _positive(given, "norm_eps", None, path), _positive(given, "rope_theta", 10000.0, path)
    scaling = None
    if given.get("use_scaled_rope"):
        usual = 32.0 if (dim, layers) in SMALL_LLAMA_3_2 else 8.0
        scaling = _positive(given, "rope_scaling_factor", usual, path)
    return MetaParams(
        path=path,
        dim=dim,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        norm_eps=eps,
        rope_theta=theta,
        vocab_size=vocab_size if isinstance(vocab_size, int) and vocab_size > 0 else None,
        scaling=scaling,
        context=_context(given, eps, theta),
    )


def _context(given: dict[str, Any], eps: float, theta: float) -> int:
    """Return the longest sequence it was trained for, which params.json does not say (transformers' own converter).

    LLaMA and Llama 2 differ by norm_eps, but for LLaMA-65B, which has Llama 2's and no grouped queries.
    """
    if theta == LLAMA_3_THETA:
        return 131072 if given.get("use_scaled_rope") else 8192
    if theta > 10000.0:
        return 16384  # Code Llama
    first = eps < 1e-5 or (given["dim"] == 8192 and given.get("n_kv_heads") is None)
    return 2048 if first else 4096


def _count(given: dict[str, Any], name: str, path: Path) -> int:
    value = given.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(f"{name} must be a whole number above 0 and is {value!r}.", file=str(path), hint=WITH_PARAMS)
    return value


def _positive(given: dict[str, Any], name: str, default: float | None, path: Path) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise BadInput(f"{name} must be a number above 0 and is {value!r}.", file=str(path), hint=WITH_PARAMS)
    return float(value)
