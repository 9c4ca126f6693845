"""What Meta's form of a model says besides its weights: params.json, and into how many files they are split."""

from collections.abc import Iterator, Mapping
from typing import Any

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.meta_params import LLAMA_3_THETA

SHARDS_BY_WIDTH = {4096: 1, 5120: 2, 6656: 4, 8192: 8}
"""Files of the published LLaMA 7B, 13B, 33B and 65B, and of later models of their width."""
MULTIPLE_OF = 256
PUBLISHED_ROUNDINGS = ((256, None), (256, 1.5), (4096, 1.3), (1024, 1.3))
"""multiple_of and ffn_dim_multiplier of LLaMA and Llama 2, of Llama 3.2 1B, of the 70B models and of Llama 3 8B."""
LLAMA_3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What use_scaled_rope means, besides the factor."""
USUAL_FACTOR = 8.0
FIELD = "spec.outputs.pth"


def default_shards(width: int) -> int:
    """Return how many files Meta publishes for a model of this width; 1 for widths it has not published."""
    return SHARDS_BY_WIDTH.get(width, 1)


def rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the rotary embedding with rope_type and rope_theta, however config.json spells them.

    Raises BadInput for a scaling that params.json cannot express.
    """
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = given.get("rope_type") or given.get("type") or "default"
    other = kind == "llama3" and any(given.get(name) != value for name, value in LLAMA_3_SCALING.items())
    if kind not in ("default", "llama3") or other:
        message = f"The rotary embedding is scaled as {kind!r}" + (
            " with other figures than Llama 3.1's" if other else ""
        )
        hint = f"Leave {FIELD} out, and write the forms huggingface or gguf."
        raise BadInput(f"{message}, which params.json cannot say.", file="config.json", hint=hint)
    return {**given, "rope_type": kind, "rope_theta": float(given.get("rope_theta", config.get("rope_theta", 10000.0)))}


def params(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return params.json for a config.json of transformers; raises BadInput where it cannot say the same."""
    dim, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    if (config.get("head_dim") or dim // heads) != dim // heads:
        message = (
            f"The heads are {config['head_dim']} wide, and params.json can only say {dim // heads}, dim / n_heads."
        )
        raise BadInput(message, file="config.json", hint=f"Leave {FIELD} out, and write the form huggingface.")
    rope = rotary(config)
    said: dict[str, Any] = {"dim": dim}
    multiple, multiplier = _rounding(dim, int(config["intermediate_size"]))
    if multiplier is not None:
        said["ffn_dim_multiplier"] = multiplier
    said |= {"multiple_of": multiple, "n_heads": heads}
    if kv_heads != heads:
        said["n_kv_heads"] = kv_heads
    said |= {"n_layers": int(config["num_hidden_layers"]), "norm_eps": float(config["rms_norm_eps"])}
    if rope["rope_theta"] != 10000.0:
        said["rope_theta"] = rope["rope_theta"]
    if rope["rope_type"] == "llama3":
        said["use_scaled_rope"] = True
        if rope["factor"] != USUAL_FACTOR:
            said["rope_scaling_factor"] = rope["factor"]
    return {**said, "vocab_size": -1}


def embedding_by_rows(config: Mapping[str, Any]) -> bool:
    """Whether the files split the embedding by rows: by columns before Llama 3, by rows since."""
    return bool(rotary(config)["rope_theta"] == LLAMA_3_THETA)


def feed_forward_width(dim: int, multiple: int, multiplier: float | None) -> int:
    """Return the width of the feed-forward layer as Meta's code computes it from params.json."""
    width = int(2 * 4 * dim / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple * ((width + multiple - 1) // multiple)


def _rounding(dim: int, width: int) -> tuple[int, float | None]:
    """Return multiple_of and ffn_dim_multiplier that give the width, as published where that fits."""
    return next(pair for pair in _roundings(dim, width) if feed_forward_width(dim, *pair) == width)


def _roundings(dim: int, width: int) -> Iterator[tuple[int, float | None]]:
    yield from PUBLISHED_ROUNDINGS
    multiple = next(size for size in (MULTIPLE_OF, 128, 64, 32, 16, 8, 4, 2, 1) if width % size == 0)
    yield multiple, None
    exact = (width - (multiple - 1) / 2 + 0.25) / int(2 * 4 * dim / 3)
    yield from ((multiple, round(exact, digits)) for digits in range(1, 17))
