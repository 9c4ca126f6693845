"""Which type each tensor of a GGUF file is stored in: the choices of llama.cpp's own quantiser.

The rules are those of `llama_model_quantize` for Llamas without experts (llama.cpp, src/llama-quant.cpp); the tests
hold them against it, tensor by tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from herdsman.api.v1alpha1.lora_merge import GgufType
from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.gguf_model import GLOBAL_NAMES, LAYER_NAMES
from herdsman_trainer.weights.tensor_spec import TensorSpec

FILE_TYPES: Mapping[GgufType, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "F32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "BF16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "Q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "Q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "Q4_1": (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "Q5_0": (GGMLQuantizationType.Q5_0, LlamaFileType.MOSTLY_Q5_0),
    "Q5_1": (GGMLQuantizationType.Q5_1, LlamaFileType.MOSTLY_Q5_1),
    "Q4_K": (GGMLQuantizationType.Q4_K, LlamaFileType.MOSTLY_Q4_K_M),
    "Q5_K": (GGMLQuantizationType.Q5_K, LlamaFileType.MOSTLY_Q5_K_M),
    "Q6_K": (GGMLQuantizationType.Q6_K, LlamaFileType.MOSTLY_Q6_K),
}
"""The type of most matrices, and what llama.cpp calls such a file; Q4_K and Q5_K are its mixtures Q4_K_M and Q5_K_M."""

FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
FALLBACKS: Mapping[GGMLQuantizationType, GGMLQuantizationType] = {
    GGMLQuantizationType.Q4_K: GGMLQuantizationType.Q5_0,
    GGMLQuantizationType.Q5_K: GGMLQuantizationType.Q5_1,
    GGMLQuantizationType.Q6_K: GGMLQuantizationType.Q8_0,
}
"""What takes the place of a type with blocks of 256 values where a row is no multiple of them: blocks of 32."""

_GLOBAL = {name: ours for ours, name in GLOBAL_NAMES.items()}
_LAYER = {name: ours for ours, name in LAYER_NAMES.items()}


@dataclass(frozen=True)
class TypeChoice:
    """What the choice of a tensor's type depends on besides the tensor."""

    type: GgufType
    layers: int
    tied: bool
    """Whether the embedding is the head too, and is stored as a head."""
    grouped: bool
    """Whether several heads share their keys and values."""
    weighted: bool = False
    """Whether there is an importance matrix."""

    def of(self, name: str, shape: tuple[int, ...]) -> GGMLQuantizationType:
        """Return the type of a tensor with this GGUF name; raises BadInput where its rows fit no block."""
        wanted = FILE_TYPES[self.type][0]
        if len(shape) < 2:
            return GGMLQuantizationType.F32
        if wanted in FLOATS:
            return wanted
        mixed = self._mixed(name, shape[-1], wanted)
        return self._fitting(name, shape[-1], mixed)

    def _mixed(self, name: str, width: int, wanted: GGMLQuantizationType) -> GGMLQuantizationType:
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            fits = width % block_size(wanted) == 0
            return GGMLQuantizationType.Q6_K if fits and wanted != GGMLQuantizationType.Q8_0 else _Q8
        if name.endswith(("attn_v.weight", "ffn_down.weight")):
            layer, values = int(name.split(".")[1]), "attn_v" in name
            if self.type in ("Q4_K", "Q5_K") and self._wants_more_bits(layer):
                return GGMLQuantizationType.Q6_K
            if values and self.type == "Q4_K" and self.layers == 80 and self.grouped:  # Llama 2 70B and its like
                return GGMLQuantizationType.Q5_K
            if not values and self.weighted and layer < self.layers // 8:
                guarded = {"Q4_0": GGMLQuantizationType.Q4_1, "Q5_0": GGMLQuantizationType.Q5_1}
                return guarded.get(self.type, wanted)
        return wanted

    def _wants_more_bits(self, layer: int) -> bool:
        """Whether a layer is one of the sensitive ones: the first and last eighth, and every third between."""
        eighth = self.layers // 8
        return layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2

    def _fitting(self, name: str, width: int, wanted: GGMLQuantizationType) -> GGMLQuantizationType:
        if width % block_size(wanted) == 0:
            return wanted
        instead = FALLBACKS.get(wanted)
        if instead is None:
            size = block_size(wanted)
            message = f"{name} has rows of {width} values and {wanted.name} stores blocks of {size}."
            raise BadInput(message, hint="Choose F32, F16 or BF16 in spec.outputs.gguf for this model.")
        return instead if width % block_size(instead) == 0 else GGMLQuantizationType.F16


_Q8 = GGMLQuantizationType.Q8_0


def gguf_name(name: str) -> str:
    """Return what llama.cpp calls a tensor; raises BadInput for one that a plain Llama has not."""
    if name in _GLOBAL:
        return _GLOBAL[name]
    match name.split(".", 3):
        case ["model", "layers", layer, part] if (stem := part.removesuffix(".weight")) in _LAYER and stem != part:
            return f"blk.{layer}.{_LAYER[stem]}.weight"
    hint = "Choose the outputs huggingface or pth: the GGUF output knows plain Llamas, without biases."
    raise BadInput(f"The model has a tensor {name}, which a plain Llama has not.", hint=hint)


def block_size(kind: GGMLQuantizationType) -> int:
    """Return how many values of a row share their scales."""
    return int(GGML_QUANT_SIZES[kind][0])


def stored_bytes(kind: GGMLQuantizationType, spec: TensorSpec) -> int:
    """Return the size of a tensor in a type."""
    values, size = GGML_QUANT_SIZES[kind]
    return spec.nbytes // spec.dtype.itemsize // int(values) * int(size)
