"""InstructionSet: given records, and the endpoint that is asked for new ones."""

import hashlib
import json
from collections.abc import Sequence

from herdsman.api.job_config import (
    API_KEY_VARIABLE,
    ENDPOINT_KEY_VARIABLE,
    TRAINING_PART,
    AskedEndpoint,
    GenerationConfig,
    InstructionSetConfig,
    RecordSource,
)
from herdsman.api.v1alpha1.datasets import InstructionDataset
from herdsman.api.v1alpha1.generation import Generation, GenerationEndpoint
from herdsman.api.v1alpha1.instruction_set import InstructionSet
from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.secrets import SecretKeyRef
from herdsman.api.v1alpha1.sources import ServerRef
from herdsman.api.v1alpha1.status import Estimate, Reason
from herdsman.core.environment import Entry, from_secret
from herdsman.core.estimate import Sketch
from herdsman.core.inputs import DATASET, FILES, SERVER, Inputs, Need
from herdsman.core.jobs import Frame
from herdsman.core.kinds import remote
from herdsman.core.kinds.rules import RunKind
from herdsman.core.plan_types import Problem
from herdsman.core.site import Site
from herdsman.core.world import World

SOURCES, ENDPOINT, SEED_TASKS = "spec.sources", "spec.generate.endpoint", "spec.generate.seedTasks.dataset"
BYTES_A_RECORD = 2000
"""A generated record and its share of the kept replies, in UTF-8."""


def needs(resource: InstructionSet) -> Sequence[Need]:
    """Return the given records in order, the examples, and the server that is asked; what is downloaded is none."""
    spec = resource.spec
    found = [
        Need(field, dataset, DATASET, part=TRAINING_PART)
        for field, dataset in _datasets(resource)
        if dataset.chosen[0] not in remote.REMOTE
    ]
    if spec.generate is not None and spec.generate.seed_tasks is not None:
        found.append(Need(SEED_TASKS, spec.generate.seed_tasks.dataset, FILES))
    if spec.generate is not None and (server := spec.generate.endpoint.model_server) is not None:
        found.append(Need(ENDPOINT, ServerRef(model_server=server), SERVER))
    return found


def problem(resource: InstructionSet) -> Problem | None:
    """Return why given records cannot be downloaded, or None."""
    return remote.problem(_datasets(resource))


def contract(_resource: InstructionSet, inputs: Inputs, _world: World) -> Problem | None:
    """Return that the server speaks another dialect than OpenAI's, or None."""
    found = inputs.found.get(ENDPOINT)
    if found is None or found.server is None or found.server.spec.dialect == "openai":
        return None
    return Problem(
        Reason.ARTIFACT_MISMATCH,
        f"{found.field}: {found.label} speaks the dialect {found.server.spec.dialect}, and OpenAI's is needed.",
        hint="Set its spec.dialect to openai, or name another ModelServer.",
        field=found.field,
    )


def environment(resource: InstructionSet, site: Site) -> Sequence[Entry]:
    """Return where downloads find their hub and their credentials, and the key of the endpoint, where the spec names
    one; that of a ModelServer only the server names.
    """
    key = resource.spec.generate.endpoint.api_key if resource.spec.generate is not None else None
    asked = remote.environment([dataset for _, dataset in _datasets(resource)], site)
    return [*asked, *([from_secret(ENDPOINT_KEY_VARIABLE, key)] if key is not None else [])]


def keys(_resource: InstructionSet, inputs: Inputs) -> Sequence[Entry]:
    """Return the key of the ModelServer that is asked, where it has one, under the name that the server itself has."""
    found = inputs.found.get(ENDPOINT)
    key = found.server.spec.api_key if found is not None and found.server is not None else None
    return [from_secret(API_KEY_VARIABLE, key.secret)] if key is not None else []


def config(resource: InstructionSet, frame: Frame, inputs: Inputs, site: Site) -> InstructionSetConfig:
    """Return the configuration of one attempt."""
    spec = resource.spec
    given = [
        RecordSource(
            dataset=remote.dataset_input(field, source.dataset, inputs, site),
            format=source.format,
            columns=source.columns,
            conversations=source.conversations,
            keep_system_prompts=source.keep_system_prompts,
            max_records=source.max_records,
            weight=source.weight,
        )
        for source, (field, _) in zip(spec.sources, _datasets(resource), strict=True)
    ]
    return InstructionSetConfig(
        **frame.members(),
        language=spec.language,
        sources=given,
        generate=_generation(spec.generate, inputs, site) if spec.generate is not None else None,
        clean=spec.clean,
        max_records=spec.max_records,
        held_out_fraction=spec.held_out_fraction,
        seed=spec.seed,
    )


def _datasets(resource: InstructionSet) -> list[tuple[str, InstructionDataset]]:
    """Return the datasets of the sources with the fields that name them."""
    return [(f"{SOURCES}[{place}].dataset", source.dataset) for place, source in enumerate(resource.spec.sources)]


def _generation(generate: Generation, inputs: Inputs, site: Site) -> GenerationConfig:
    asked, found = generate.endpoint, inputs.found
    server = found[ENDPOINT].server if ENDPOINT in found else None
    if server is not None:
        endpoint = _served(asked, server, site)
        most = min(generate.max_tokens, server.spec.limits.max_tokens)
        generate = generate.model_copy(update={"max_tokens": most})
    else:
        assert asked.url is not None, "one of them is set"
        url = asked.url.rstrip("/")
        endpoint = AskedEndpoint(
            url=url,
            model=asked.model or "",
            field=f"{ENDPOINT}.url",
            identity=f"{url} {asked.model}",
            key_variable=ENDPOINT_KEY_VARIABLE if asked.api_key is not None else None,
            key_place=_place(asked.api_key, ENDPOINT_KEY_VARIABLE, site),
        )
    seed_tasks = found[SEED_TASKS].to_input(site) if SEED_TASKS in found else None
    return GenerationConfig(endpoint=endpoint, spec=generate, seed_tasks=seed_tasks)


def _served(asked: GenerationEndpoint, server: ModelServer, site: Site) -> AskedEndpoint:
    """Return a ModelServer as an endpoint; another model behind it makes it another one, more replicas do not."""
    spec, name = server.spec, server.metadata.name
    url = server.status.url if server.status is not None else None
    assert url is not None, "a server that answers has an address"
    served = {"model": spec.model.to_json(), "adapters": [adapter.to_json() for adapter in spec.adapters]}
    identity = {**served, "template": spec.template, "ggufType": spec.gguf_type, "engine": spec.engine}
    key = spec.api_key.secret if spec.api_key is not None else None
    return AskedEndpoint(
        url=url.rstrip("/"),
        model=asked.model or spec.model_name or name,
        field=f"{ENDPOINT}.modelServer",
        identity=f"ModelServer {name} {hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()}",
        key_variable=API_KEY_VARIABLE if key is not None else None,
        key_place=_place(key, API_KEY_VARIABLE, site),
        ours=True,
    )


def _place(key: SecretKeyRef | None, variable: str, site: Site) -> str:
    if key is None:
        return ""
    return f"the variable {variable}" if site.local else f"the key {key.key} of the Secret {key.name}"


def sketch(resource: InstructionSet, _world: World) -> Sketch:
    """Return the disk that generated records and their replies take; how large given files are is not known here."""
    generate = resource.spec.generate
    if generate is None:
        return Sketch(Estimate())
    return Sketch(Estimate(disk_gib=round(max(0.01, generate.records * BYTES_A_RECORD / (1 << 30)), 2)))


RULES = RunKind(
    needs=needs, estimate=sketch, problem=problem, contract=contract, config=config, environment=environment, keys=keys
)
