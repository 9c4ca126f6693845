"""LoRAMerge: a model and the adapters that are merged into it, in order."""

from collections.abc import Mapping, Sequence

from herdsman.api.job_config import LoRAMergeConfig
from herdsman.api.v1alpha1.lora_merge import GgufType, LoRAMerge
from herdsman.api.v1alpha1.status import Estimate
from herdsman.core import contract as artifacts
from herdsman.core import estimate
from herdsman.core.inputs import ADAPTER, FILES, MODEL, WEIGHTS, Inputs, Need
from herdsman.core.jobs import Frame
from herdsman.core.kinds.rules import RunKind
from herdsman.core.known_shapes import DTYPE_BYTES, resource_shape
from herdsman.core.plan_types import Problem
from herdsman.core.site import Site
from herdsman.core.world import Key, World

MODEL_FIELD, ADAPTERS, MATRIX_FIELD = "spec.model", "spec.adapters", "spec.outputs.importanceMatrix"

GGUF_BYTES: Mapping[GgufType, float] = {
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "Q8_0": 34 / 32,
    "Q5_1": 24 / 32,
    "Q5_0": 22 / 32,
    "Q4_1": 20 / 32,
    "Q4_0": 18 / 32,
    "Q6_K": 210 / 256,
    "Q5_K": 176 / 256,
    "Q4_K": 144 / 256,
}
"""Bytes a parameter takes: ggml's bytes and values of a block (gguf.GGML_QUANT_SIZES)."""


def needs(resource: LoRAMerge) -> Sequence[Need]:
    """Return the model, the adapters in order, and the importance matrix."""
    adapters = enumerate(resource.spec.adapters)
    matrix = resource.spec.outputs.importance_matrix
    return [
        Need(MODEL_FIELD, resource.spec.model, MODEL, WEIGHTS),
        *(Need(f"{ADAPTERS}[{place}]", reference, ADAPTER) for place, reference in adapters),
        *([Need(MATRIX_FIELD, matrix, FILES)] if matrix is not None else []),
    ]


def contract(_resource: LoRAMerge, inputs: Inputs, world: World) -> Problem | None:
    """Return why the adapters do not fit the model or each other, or None."""
    return artifacts.chain(inputs.found[MODEL_FIELD], inputs.listed(ADAPTERS), world)


def config(resource: LoRAMerge, frame: Frame, inputs: Inputs, site: Site) -> LoRAMergeConfig:
    """Return the configuration of one attempt."""
    spec = resource.spec
    return LoRAMergeConfig(
        **frame.members(),
        model=inputs.found[MODEL_FIELD].to_input(site),
        adapters=[found.to_input(site) for found in inputs.listed(ADAPTERS)],
        outputs=spec.outputs,
        importance_matrix=inputs.found[MATRIX_FIELD].to_input(site) if MATRIX_FIELD in inputs.found else None,
        dtype=spec.dtype,
        template=spec.template,
    )


def sketch(resource: LoRAMerge, world: World) -> estimate.Sketch:
    """Return the disk that all forms of the merged weights take, in the spec's type, the model's, or 16 bits."""
    shape = resource_shape(resource, world)
    if shape is None:
        return estimate.Sketch(Estimate())
    dtype = resource.spec.dtype or _base_dtype(resource, world) or "bfloat16"
    outputs = resource.spec.outputs
    whole = DTYPE_BYTES.get(dtype, 2) * ((outputs.huggingface is not None) + (outputs.pth is not None))
    return estimate.stored(shape.parameters, whole + sum(GGUF_BYTES[output.type] for output in outputs.gguf))


def _base_dtype(resource: LoRAMerge, world: World) -> str | None:
    name = resource.spec.model.model_import
    source = world.resources.get(Key("ModelImport", name)) if name is not None else None
    artifact = source.status.artifact if source is not None and source.status is not None else None
    return artifact.dtype if artifact is not None else None


RULES = RunKind(needs=needs, estimate=sketch, contract=contract, config=config)
