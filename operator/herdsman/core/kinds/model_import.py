"""ModelImport: from a directory on a volume, downloaded, or freshly initialised."""

import re
from collections.abc import Sequence

from herdsman.api.job_config import (
    HTTP_TOKEN_VARIABLE,
    HUB_TOKEN_VARIABLE,
    S3_KEY_VARIABLES,
    ModelImportConfig,
    RemoteSource,
)
from herdsman.api.v1alpha1.model_import import ModelImport
from herdsman.api.v1alpha1.remote_sources import HttpSource
from herdsman.api.v1alpha1.secrets import SecretKeyRef
from herdsman.api.v1alpha1.sources import RELATIVE_PATH
from herdsman.api.v1alpha1.status import Estimate, Reason
from herdsman.core import estimate
from herdsman.core.environment import Entry, from_secret, hub, no_hub
from herdsman.core.inputs import FILES, TOKENIZER, Inputs, Need
from herdsman.core.jobs import Frame
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
        return _names(source.http)
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


def _names(source: HttpSource) -> Problem | None:
    """Return that a file's name is none, or is that of another file, or None."""
    taken: dict[str, int] = {}
    for place, file in enumerate(source.files):
        field, name = f"spec.source.http.files[{place}]", file.name
        if file.path is None and (re.fullmatch(RELATIVE_PATH, name) is None or name == "."):
            what = f"ends in {name!r}, which is no name for a file" if name else "has no path that ends in a name"
            return Problem(
                Reason.INVALID_SPEC,
                f"{field}: the URL {what}.",
                hint="Say in `path` what the file is called.",
                field=field,
            )
        if name in taken:
            return Problem(
                Reason.INVALID_SPEC,
                f"{field}: files[{taken[name]}] is called {name} too.",
                hint="Give one of them another `path`.",
                field=field,
            )
        taken[name] = place
    return None


def environment(resource: ModelImport, site: Site) -> Sequence[Entry]:
    """Return where a download finds its hub and its credentials; only a download from a hub may ask one."""
    source = resource.spec.source
    if source.hub is not None:
        token = source.hub.token
        return [*hub(source.hub.endpoint, site), *([from_secret(HUB_TOKEN_VARIABLE, token)] if token else [])]
    if source.s3 is not None and source.s3.credentials_secret is not None:
        secret = source.s3.credentials_secret
        keys = [from_secret(name, SecretKeyRef(name=secret, key=name)) for name in S3_KEY_VARIABLES]
        return [*no_hub(site), *keys]
    if source.http is not None and source.http.token is not None:
        return [*no_hub(site), from_secret(HTTP_TOKEN_VARIABLE, source.http.token)]
    return no_hub(site)


def config(resource: ModelImport, frame: Frame, inputs: Inputs, site: Site) -> ModelImportConfig:
    """Return the configuration of one attempt."""
    spec, found = resource.spec, inputs.found
    source = spec.source
    remote = source.hub is not None or source.s3 is not None or source.http is not None
    return ModelImportConfig(
        **frame.members(),
        source=found[SOURCE].to_input(site) if SOURCE in found else None,
        remote=RemoteSource(hub=source.hub, s3=source.s3, http=source.http) if remote else None,
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
