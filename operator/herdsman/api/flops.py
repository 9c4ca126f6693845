"""What a training step costs in floating-point operations, and what GPUs can do at most.

Per token, forward and backward: 6 a trained parameter of a matrix product, 4 a frozen one, whose own gradient is never
computed, and three times the forward pass of causal attention, 2 x length x width x layers. What is only looked up,
such as the embedding, costs nothing, and neither does what gradient checkpointing computes again: these are the model's
operations, from which the model FLOPs utilisation (MFU) follows (Chowdhery et al. 2022, appendix B).
"""

import re

PEAK_FLOPS = {
    "V100": 125e12,
    "T4": 65e12,
    "A100": 312e12,
    "A800": 312e12,
    "A30": 165e12,
    "A40": 150e12,
    "A10": 125e12,
    "L4": 121e12,
    "L40": 181e12,
    "L40S": 362e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "H200": 989e12,
    "H20": 148e12,
    "B200": 2250e12,
}
"""Dense 16-bit peaks of the data sheets, without sparsity, by words of the product's name."""


def peak_flops(product: str) -> float | None:
    """Return a GPU's peak from its name as PyTorch or the label nvidia.com/gpu.product has it; None where not known."""
    words = {word.lower() for word in re.split(r"[^A-Za-z0-9]+", product)}
    known = {name: frozenset(name.lower().split()) for name in PEAK_FLOPS}
    fitting = [name for name, needed in known.items() if needed <= words]
    return PEAK_FLOPS[max(fitting, key=lambda name: len(known[name]))] if fitting else None


def training_flops(*, frozen: float, trained: float, length: float, width: int, layers: int) -> float:
    """Return the model's operations for one token in a sequence of `length`.

    `frozen` and `trained` are parameters of matrix products, LoRA's and a trained head among the latter.
    """
    return 4 * frozen + 6 * trained + 6 * length * width * layers
