"""What a token of a micro-batch takes on a GPU while a LoRA or its embeddings are trained, by the shapes of a Llama.

Between the forward and the backward pass a block keeps its input, queries, keys, values, the attention's result, the
residual stream after it, gate, up and what is made of them. Recomputing `Selective` leaves out the last three, `Full`
keeps the input alone. Measured on an H200 with a 7B and an 8B: within 2 % (see core/estimate.py).
"""

from dataclasses import dataclass

from herdsman.api.v1alpha1.recipes import BaseFormat, Recompute

LOGIT_BYTES = 1 << 30
"""Memory of the logits of one piece of the head at most."""
FORMAT_BYTES: dict[BaseFormat, float | None] = {"Native": None, "Int8": 1.0, "NF4": 0.5162, "FP8": 2.0}
"""Of a frozen weight of a block; None is that of the products. FP8 has each matrix twice, by rows and by columns; NF4
has 4 bits, 8 for every 64 weights and 32 for every 256 of these."""


@dataclass(frozen=True)
class BlockShape:
    """The widths of a block."""

    hidden: int
    queries: int
    """All heads together."""
    keys: int
    """All key heads together; values are as wide."""
    intermediate: int
    layers: int

    def kept_bytes(self, recompute: Recompute, item_bytes: int) -> int:
        """Return what all blocks keep of one token for the backward pass."""
        values = self.hidden
        if recompute != "Full":
            values += self.queries + 2 * self.keys + self.queries + self.hidden
        if recompute == "None":
            values += 3 * self.intermediate
        return values * item_bytes * self.layers

    def passing_bytes(self, recompute: Recompute, item_bytes: int) -> int:
        """Return what one token needs while a block computes gradients: these, and what is computed again for them."""
        attention = self.queries + 2 * self.keys
        values = 4 * self.hidden + 2 * attention + self.intermediate
        if recompute != "None":
            values += 3 * self.intermediate
        if recompute == "Full":
            values += 2 * attention
        return values * item_bytes
