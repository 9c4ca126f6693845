"""Shapes of Llama models: how many parameters which part has."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False

    @property
    def kv_width(self) -> int:
        """Width of the keys and of the values."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the seven linear layers of a block."""
        d, kv, ff = self.hidden, self.kv_width, self.intermediate
        return {
            "q_proj": (d, d),
            "k_proj": (d, kv),
            "v_proj": (d, kv),
            "o_proj": (d, d),
            "gate_proj": (d, ff),
            "up_proj": (d, ff),
            "down_proj": (ff, d),
        }

    @property
    def linear_parameters(self) -> int:
        """Parameters of all blocks' linear layers."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def embedding_parameters(self) -> int:
        """Parameters of embed_tokens; the head has as many, or shares them."""
        return self.vocabulary * self.hidden

    @property
    def head_parameters(self) -> int:
        """Parameters of lm_head that are its own."""
        return 0 if self.tied else self.embedding_parameters

    @property
    def parameters(self) -> int:
        """All parameters; two norms a block and one at the end."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.linear_parameters + norms + self.embedding_parameters + self.head_parameters

    def lora_parameters(self, rank: int, targets: list[str]) -> int:
        """Parameters of A (rank x inputs) and B (outputs x rank) of the target layers, in all blocks."""
        linears = self.linears
        return self.layers * rank * sum(sum(linears[target]) for target in targets if target in linears)

    def with_vocabulary(self, vocabulary: int | None) -> "Shape":
        """Return the shape with so many rows in the embedding; None changes nothing."""
        return self if vocabulary is None else replace(self, vocabulary=vocabulary)


PUBLISHED = {
    "llama-7b": Shape(4096, 32, 11008, 32, 32, 32000),
    "llama-13b": Shape(5120, 40, 13824, 40, 40, 32000),
    "llama-33b": Shape(6656, 60, 17920, 52, 52, 32000),
    "llama-65b": Shape(8192, 80, 22016, 64, 64, 32000),
    "llama-2-7b": Shape(4096, 32, 11008, 32, 32, 32000),
    "llama-2-13b": Shape(5120, 40, 13824, 40, 40, 32000),
    "llama-2-70b": Shape(8192, 80, 28672, 64, 8, 32000),
    "llama-3-8b": Shape(4096, 32, 14336, 32, 8, 128256),
    "llama-3-70b": Shape(8192, 80, 28672, 64, 8, 128256),
    "smollm2-135m": Shape(576, 30, 1536, 9, 3, 49152, tied=True),
}
"""The published models' config.json, by the names that the annotation takes."""

_LADDER = sorted((shape for name, shape in PUBLISHED.items() if name.startswith("llama-")), key=lambda s: s.parameters)


def approximate(parameters: int, rows: int | None) -> Shape:
    """Return a Llama of about so many parameters: the published shape nearest to it, its width scaled to fit."""
    nearest = min(_LADDER, key=lambda shape: abs(shape.with_vocabulary(rows).parameters - parameters))
    rows = rows or nearest.vocabulary
    low, high = 1, 65536
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _scaled(nearest, middle, rows).parameters <= parameters else (low, middle)
    return _scaled(nearest, low, rows)


def _scaled(shape: Shape, hidden: int, rows: int) -> Shape:
    scale = hidden / shape.hidden
    layers = max(1, round(shape.layers * min(1.0, scale) ** 0.5))
    return Shape(hidden, layers, max(1, round(shape.intermediate * scale)), 1, 1, rows)
