"""Reads how a GGUF file scales the rotary embedding, as far as config.json can say the same.

Linear scaling stands in the metadata. Llama 3.1's is stored as a tensor of divisors without the figures it was computed
from; they are the same for all published models but for the factor, so the divisors show whether it is that.
"""

from collections.abc import Mapping
from math import pi
from pathlib import Path
from typing import Any

import numpy

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.meta_params import llama3_rope

FACTORS = "rope_freqs.weight"
TOLERANCE = 1e-4
"""Relative; other figures would differ by whole multiples of it."""
FROM_SOURCE = "Import the model's Hugging Face directory with safetensors instead."


def rope_parameters(metadata: Mapping[str, Any], divisors: Any | None, theta: float, path: Path) -> dict[str, Any]:
    """Return the member rope_parameters of config.json; `divisors` is the tensor rope_freqs.weight, if there is one.

    Raises BadInput for a scaling that is neither linear nor Llama 3.1's.
    """
    kind = metadata.get("llama.rope.scaling.type", "none")
    factor = metadata.get("llama.rope.scaling.factor", metadata.get("llama.rope.scale_linear", 1.0))
    if "llama.rope.scale_linear" in metadata and kind == "none" and factor != 1.0:  # as files of 2023 have it
        kind = "linear"
    scaled = divisors is not None and not numpy.array_equal(divisors, numpy.ones_like(divisors))
    if kind == "none" and not scaled:
        return {"rope_type": "default", "rope_theta": theta}
    if kind == "linear" and not scaled and isinstance(factor, int | float) and factor > 0:
        return {"rope_type": "linear", "rope_theta": theta, "factor": float(str(numpy.float32(factor)))}
    if kind == "none" and divisors is not None:
        rope = llama3_rope(theta, float(numpy.max(divisors)))
        if numpy.allclose(divisors, llama3_divisors(rope, 2 * len(divisors)), rtol=TOLERANCE, atol=0.0):
            return rope
    what = f"as {kind!r}" if kind != "none" else f"by a tensor {FACTORS} that is not Llama 3.1's"
    message = f"The file scales the rotary embedding {what}, which its metadata does not describe completely."
    raise BadInput(message, file=str(path), hint=FROM_SOURCE)


def llama3_divisors(rope: Mapping[str, Any], head_dim: int) -> Any:
    """Return what the frequencies of a head are divided by.

    A wave of more than original_max_position_embeddings / low_freq_factor tokens is stretched by `factor`, one of less
    than the same over high_freq_factor stays, and in between the frequency is interpolated linearly in the number of
    turns (rope_type llama3 of transformers).
    """
    frequencies = rope["rope_theta"] ** -(numpy.arange(0, head_dim, 2) / head_dim)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = numpy.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / (kept + (1.0 - kept) / rope["factor"])
