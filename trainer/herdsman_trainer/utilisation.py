"""MFU: the share of the GPUs' peak that the model's own operations take."""

from collections.abc import Iterable, Mapping

import torch
from transformers import LlamaConfig

from herdsman.api.flops import peak_flops, training_flops
from herdsman_trainer.weights.merge import EMBEDDING, HEAD


class Utilisation:
    """What the operations of a step come to beside what the GPUs could do at most."""

    def __init__(self, config: LlamaConfig, trained: Mapping[str, torch.Size], peak: float | None) -> None:
        self._config = config
        self._frozen, self._trained = product_parameters(config, trained)
        self._peak = peak

    def flops(self, tokens: float, sequences: int) -> float:
        """Return the model's operations for real tokens in so many sequences."""
        width, layers = self._config.hidden_size, self._config.num_hidden_layers
        length = tokens / sequences
        return tokens * training_flops(
            frozen=self._frozen, trained=self._trained, length=length, width=width, layers=layers
        )

    def of(self, tokens: float, sequences: int, seconds: float) -> float | None:
        """Return the MFU of a step, 0 to 1; None on the CPU and on GPUs whose peak is not known."""
        if self._peak is None or seconds <= 0 or not tokens:
            return None
        return self.flops(tokens, sequences) / seconds / self._peak


def product_parameters(config: LlamaConfig, trained: Mapping[str, torch.Size]) -> tuple[int, int]:
    """Return (frozen, trained) parameters of matrix products; an embedding is only looked up, a tied head is a product.

    They follow from the configuration, because a quantised or spread weight does not have its own shape.
    """
    width, inner = config.hidden_size, config.intermediate_size
    head_width = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_width, config.num_key_value_heads * head_width
    block = 2 * width * queries + 2 * width * keys + 3 * width * inner
    every = config.num_hidden_layers * block + config.vocab_size * width
    head = EMBEDDING if config.tie_word_embeddings else HEAD
    extra = sum(shape.numel() for name, shape in trained.items() if ".lora_" in name)
    own = sum(shape.numel() for name, shape in _matrices(trained) if name == head or name != EMBEDDING)
    return every - own, own + extra


def _matrices(trained: Mapping[str, torch.Size]) -> Iterable[tuple[str, torch.Size]]:
    return ((name, shape) for name, shape in trained.items() if len(shape) == 2 and ".lora_" not in name)


def peak_of(device: torch.device, world_size: int) -> float | None:
    """Return the peak of all GPUs of the run, taken to be alike; None on the CPU or where it is not known."""
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return world_size * peak if peak is not None else None
