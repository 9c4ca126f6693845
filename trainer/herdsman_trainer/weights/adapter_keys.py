"""Sorts the keys of an adapter file: the plain ones of early peft, those peft writes now, and those of a whole module.

A whole module's state dict, as trainers save it, has the adapter's name in its keys (`lora_A.default.weight`) and wraps
what is trained in full (`modules_to_save.default.weight` beside the `original_module.weight` it replaces).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.tensor_spec import TensorSpec, shape_text

KEY_PREFIX = "base_model.model."
LORA_A = ".lora_A.weight"
LORA_B = ".lora_B.weight"
_WRAPPED = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|modules_to_save|original_module|base_layer)(\.(?P<adapter>[^.]+))?\.weight$"
)
EMPTIED = (
    "A trainer that replaced state_dict with peft's filter saves this with a newer peft, which filters the keys again "
    "and finds none; or the model was partitioned (ZeRO-3) and not gathered. Take an earlier checkpoint, or train anew."
)


@dataclass(frozen=True)
class AdapterKeys:
    """The tensors of an adapter file by the names of the base's; the specs keep the file's own keys."""

    full: Mapping[str, TensorSpec]
    a: Mapping[str, TensorSpec]
    b: Mapping[str, TensorSpec]


def sort_keys(specs: Mapping[str, TensorSpec], path: Path) -> AdapterKeys:
    """Sort the tensors of a file into whole matrices and halves of low-rank ones.

    Raises BadInput where there are none, where one is empty or of no known kind, where a half is alone, and where two
    keys mean the same tensor.
    """
    if not specs:
        message = f"The adapter holds no tensors: the file of {path.stat().st_size} bytes has no keys."
        raise BadInput(message, file=str(path), hint=EMPTIED)
    found: dict[str, dict[str, TensorSpec]] = {"": {}, LORA_A: {}, LORA_B: {}}
    adapters: set[str] = set()
    for key, spec in specs.items():
        kind, name, adapter = _kind(key, path)
        if kind is None:
            continue
        if 0 in spec.shape:
            hint = "It was saved from a partitioned (ZeRO-3) model; gather the parameters before saving."
            raise BadInput(f"{key} is empty ({shape_text(spec.shape)}).", file=str(path), hint=hint)
        if name in found[kind]:
            message = f"{key} and {found[kind][name].name} are the same tensor."
            raise BadInput(message, file=str(path), hint="Save the adapter anew with save_pretrained.")
        found[kind][name] = spec
        adapters |= {adapter} if adapter else set()
    if len(adapters) > 1:
        message = f"The file holds the adapters {', '.join(sorted(adapters))}."
        raise BadInput(message, file=str(path), hint="Save each of them by itself, with save_pretrained.")
    if lonely := sorted(found[LORA_A].keys() ^ found[LORA_B].keys()):
        message = f"{lonely[0]} has only one of lora_A and lora_B."
        raise BadInput(message, file=str(path), hint="The adapter is incomplete: copy or save it again.")
    return AdapterKeys(found[""], found[LORA_A], found[LORA_B])


def _kind(key: str, path: Path) -> tuple[str | None, str, str | None]:
    """Return what a key is for ("" a whole matrix, None nothing), the name of the base's tensor, and the adapter's."""
    name = key.removeprefix(KEY_PREFIX)
    if match := _WRAPPED.match(name):
        module, part, adapter = match["module"] + ".weight", match["part"], match["adapter"]
        if part == "base_layer":
            hint = "Save the adapter alone, with save_pretrained."
            raise BadInput(
                f"{key} is the base's own weight: the file holds the whole model.", file=str(path), hint=hint
            )
        if part == "original_module":
            return None, module, None
        return "" if part == "modules_to_save" else f".{part}.weight", module, adapter
    if "lora_" in name or ".token_adapter." in name or not name.endswith(".weight"):
        hint = "Merge it with peft's merge_and_unload and import the model."
        raise BadInput(f"{key} is neither a LoRA matrix nor a whole weight.", file=str(path), hint=hint)
    return "", name, None
