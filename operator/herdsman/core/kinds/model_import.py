"""ModelImport: from a directory on a volume, downloaded, or freshly initialised."""

from collections.abc import Sequence

from herdsman.api.job_config import ModelImportConfig
from herdsman.api.v1alpha1.model_import import ModelImport
from herdsman.api.v1alpha1.status import Estimate, Reason
from herdsman.core import estimate
from herdsman.core.environment import Entry
from herdsman.core.inputs import FILES, TOKENIZER, Inputs, Need
from herdsman.core.jobs import Frame
from herdsman.core.kinds import remote
from herdsman.core.kinds.rules import RunKind
from herdsman.core.known_shapes import DTYPE_BYTES, resource_shape
from herdsman.core.plan_types import Problem
from herdsman.core.site import Site
from herdsman.core.world import World

SOURCE = "spec.source"
TOKENIZER_FIELD = "spec.source.initialise.tokenizer"


def needs(resource: ModelImport) -> Sequence[Need]:
    """Return the source on a volume, or the tokenizer of a new model; what is downloaded has no inputs."""
    source = resource.spec.source
    if source.initialise is not None:
        return [Need(TOKENIZER_FIELD, source.initialise.tokenizer, TOKENIZER)]
    return [Need(SOURCE, source, FILES)] if source.volume is not None else []


def problem(resource: ModelImport) -> Problem | None:
    """Return why a new model's sizes contradict each other, or files cannot have their names; or None."""
    source = resource.spec.source
    if source.http is not None:
        return remote.bad_names("spec.source.http", source.http)
    given = source.initialise
    if given is None or given.hidden_size // given.attention_heads % 2 == 0:  # rotary embeddings turn pairs of numbers
        return None
    field, heads = "spec.source.initialise.hiddenSize", given.attention_heads
    return Problem(
        Reason.INVALID_SPEC,
        f"{field}: {given.hidden_size} over {heads} attentionHeads leaves each an odd width.",
        hint=f"Set hiddenSize to a multiple of {2 * heads}.",
        field=field,
    )


def environment(resource: ModelImport, site: Site) -> Sequence[Entry]:
    """Return where a download finds its hub and its credentials; only a download from a hub may ask one."""
    return remote.environment([resource.spec.source], site)


def config(resource: ModelImport, frame: Frame, inputs: Inputs, site: Site) -> ModelImportConfig:
    """Return the configuration of one attempt."""
    spec, found = resource.spec, inputs.found
    source = spec.source
    return ModelImportConfig(
        **frame.members(),
        source=found[SOURCE].to_input(site) if SOURCE in found else None,
        remote=remote.source(source) if source.chosen[0] in remote.REMOTE else None,
        keep_downloads=spec.keep_downloads,
        initialise=spec.source.initialise,
        tokenizer=found[TOKENIZER_FIELD].to_input(site) if TOKENIZER_FIELD in found else None,
        sha256=dict(spec.sha256),
        dtype=spec.dtype,
    )


def sketch(resource: ModelImport, world: World) -> estimate.Sketch:
    """Return the disk a copy of the weights takes; 16 bits a parameter unless the spec says otherwise."""
    shape = resource_shape(resource, world)
    if shape is None:
        return estimate.Sketch(Estimate())
    unset = "float32" if resource.spec.source.initialise is not None else "bfloat16"
    return estimate.stored(shape.parameters, DTYPE_BYTES[resource.spec.dtype or unset])


RULES = RunKind(needs=needs, estimate=sketch, problem=problem, config=config, environment=environment)
