"""Inputs: from a reference in the spec to a directory on a claim and the artifact in it, or why there is none yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from herdsman.api.job_config import Input
from herdsman.api.v1alpha1.lora_merge import LoRAMerge
from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.pretrain_job import PretrainJob
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.schema import OneOf
from herdsman.api.v1alpha1.sources import REFERENCE_KINDS, VolumeSource
from herdsman.api.v1alpha1.status import Artifact, ArtifactKind, ConditionType, Reason
from herdsman.core import conditions, references
from herdsman.core.plan_types import Problem
from herdsman.core.site import Site
from herdsman.core.world import Key, World

MODEL = frozenset({ArtifactKind.MODEL})
ADAPTER = frozenset({ArtifactKind.ADAPTER})
TOKENIZER = frozenset({ArtifactKind.TOKENIZER, ArtifactKind.MODEL})
"""A model brings its tokenizer."""
FILES: frozenset[ArtifactKind] = frozenset()
"""Plain files on a volume."""
DATASET = frozenset({ArtifactKind.DATASET})
SERVER: frozenset[ArtifactKind] = frozenset()
"""No artifact: a server that answers."""
WEIGHTS = frozenset({"huggingface"})
"""The form of a model that trainings and merges read."""
_FORM_NAMES = {"huggingface": "Hugging Face weights", "gguf": "GGUF file"}


@dataclass(frozen=True)
class Need:
    """An input a resource names."""

    field: str
    """Where: spec.model, spec.adapters[0]."""
    reference: OneOf
    wants: frozenset[ArtifactKind]
    forms: frozenset[str] = frozenset()
    """The forms of a model it can be read in, of which one is enough; any where there are none."""
    part: str | None = None
    """The directory of an artifact that is read."""


@dataclass(frozen=True)
class Found:
    """An input that is there."""

    field: str
    """Where it is named, with the member: spec.model.modelImport."""
    label: str
    """For messages: "ModelImport base", or "volume corpora, path zh"."""
    claim: str
    path: str
    artifact: Artifact | None = None
    """None for plain files on a volume."""
    part: str | None = None
    """The directory of the artifact that is read; all of it where there is none."""
    server: ModelServer | None = None
    """A server that answers, which has no claim and no path."""

    def to_input(self, site: Site) -> Input:
        """Return the entry of the job's configuration: absolute paths where the site mounts the claim."""
        root = site.mount(self.claim)
        path = root if self.path in ("", ".") else f"{root}/{self.path}"
        return Input(root=root, path=path, field=self.field, artifact=self.artifact, part=self.part)


@dataclass(frozen=True)
class Inputs:
    """All inputs of a resource, by the field of their need, and what stands in the way."""

    found: Mapping[str, Found] = field(default_factory=dict)
    waiting: tuple[Problem, ...] = ()
    refused: Problem | None = None

    def listed(self, field: str) -> list[Found]:
        """Return the inputs of a list such as spec.adapters, in order."""
        return [found for name, found in self.found.items() if name.startswith(f"{field}[")]


def resolve(resource: AnyResource, needs: Sequence[Need], world: World, site: Site) -> Inputs:
    """Return where the inputs lie, what has to be waited for, and why a reference can never do."""
    loop = references.loop(resource, world.resources)
    if loop:
        way = " -> ".join(str(key) for key in loop)
        return Inputs(
            refused=Problem(
                Reason.CYCLE,
                f"The references lead back to the resource itself: {way}.",
                hint="Delete one of them and apply it again with another input.",
                field=next(name for name, key in references.direct(resource) if key == loop[1]),
            )
        )
    found: dict[str, Found] = {}
    waiting: list[Problem] = []
    for need in needs:
        answer = _resolve(need, world, site)
        if isinstance(answer, Found):
            found[need.field] = answer
        elif answer.reason is Reason.ARTIFACT_MISMATCH:
            return Inputs(refused=answer)
        else:
            waiting.append(answer)
    return Inputs(found, tuple(waiting))


def made_by(source: AnyResource) -> ArtifactKind | None:
    """Return the kind of artifact a resource makes, as its spec tells; None for a server."""
    if isinstance(source, PretrainJob):
        return ArtifactKind.MODEL if source.spec.stage == "Full" else ArtifactKind.ADAPTER
    return {
        "ModelImport": ArtifactKind.MODEL,
        "TokenizerMerge": ArtifactKind.TOKENIZER,
        "InstructionSet": ArtifactKind.DATASET,
        "SFTJob": ArtifactKind.ADAPTER,
        "LoRAMerge": ArtifactKind.MODEL,
        "Evaluation": ArtifactKind.REPORT,
    }.get(source.kind)


def stored_forms(source: AnyResource) -> frozenset[str]:
    """Return the forms a resource's model is stored in, as its artifact says or, before it is there, its spec."""
    artifact = source.status.artifact if source.status is not None else None
    if artifact is not None:
        return frozenset(artifact.formats) or WEIGHTS
    return frozenset(source.spec.outputs.formats) if isinstance(source, LoRAMerge) else WEIGHTS


def _resolve(need: Need, world: World, site: Site) -> Found | Problem:
    member, value = need.reference.chosen
    where = f"{need.field}.{type(need.reference).model_fields[member].alias or member}"
    if isinstance(value, VolumeSource):
        path = "" if value.path == "." else f", path {value.path}"
        found = Found(where, f"volume {value.claim}{path}", value.claim, value.path)
        return absent_volume(value.claim, where, site) if value.claim not in world.volumes else found
    key = Key(REFERENCE_KINDS[member], value)
    source = world.resources.get(key)
    if source is None:
        return Problem(
            Reason.REFERENCE_NOT_FOUND,
            f"{where}: there is no {key} in the namespace.",
            hint=f"Apply the {key.kind}, or correct the name; the run starts by itself then.",
            field=where,
        )
    if isinstance(source, ModelServer):
        return _answering(where, key, source)
    if (made := made_by(source)) not in need.wants:
        return _wrong_kind(need, where, key, source, made)
    if made is ArtifactKind.MODEL and need.forms and not need.forms & stored_forms(source):
        return _wrong_form(need, where, key, stored_forms(source))
    if conditions.holds(source.status, ConditionType.FAILED):
        return _failed(where, key, source)
    artifact = source.status.artifact if source.status is not None else None
    if artifact is None or not conditions.holds(source.status, ConditionType.COMPLETE):
        phase = source.status.phase if source.status is not None else "Pending"
        return Problem(Reason.REFERENCE_NOT_READY, f"{where}: {key} is not finished yet (it is {phase}).", field=where)
    if artifact.claim not in world.volumes:
        return absent_volume(artifact.claim, where, site, key)
    return Found(where, str(key), artifact.claim, artifact.path, artifact, need.part)


def absent_volume(claim: str, where: str, site: Site, owner: Key | None = None) -> Problem:
    """Return that a claim does not exist, with the remedy that the site knows."""
    holds = f", which holds the artifact of {owner}," if owner is not None else ""
    if site.local and owner is None:
        hint = f"Say where its files are: --volume {claim}=DIRECTORY."
    elif owner is not None:
        hint = f"Bring the volume back, or delete {owner} and apply it again."
    else:
        hint = f"Create the PersistentVolumeClaim {claim}, or correct the name."
    message = f"{where}: the volume {claim}{holds} does not exist."
    return Problem(Reason.VOLUME_NOT_FOUND, message, hint=hint, field=where)


def _answering(where: str, key: Key, server: ModelServer) -> Found | Problem:
    """Return the server, once it answers."""
    status = server.status
    if status is not None and status.url is not None and conditions.holds(status, ConditionType.READY):
        return Found(where, str(key), "", "", server=server)
    off = server.spec.replicas == 0
    phase = status.phase if status is not None else "Pending"
    return Problem(
        Reason.REFERENCE_NOT_READY,
        f"{where}: {key} does not answer yet (it is {phase}).",
        hint="Its spec.replicas is 0: raise it, and the run starts by itself." if off else None,
        field=where,
    )


def _failed(where: str, key: Key, source: AnyResource) -> Problem:
    failure = source.status.failure if source.status is not None else None
    why = f": {failure.message}" if failure is not None else "."
    return Problem(
        Reason.REFERENCE_FAILED,
        f"{where}: {key} has failed{why}",
        hint=f"Mend the cause, delete {key} and apply it again; this run starts by itself once it is finished.",
        field=where,
    )


def _wrong_kind(need: Need, where: str, key: Key, source: AnyResource, made: ArtifactKind | None) -> Problem:
    wanted = " or ".join(sorted(need.wants))
    stage = f" of stage {source.spec.stage}" if isinstance(source, PretrainJob) else ""
    if made is ArtifactKind.ADAPTER:
        hint = f"Merge it with a LoRAMerge and name that, or name {key} as an adapter."
    else:
        hint = "Name it as the model: it holds full weights and no adapter."
    message = f"{where}: {key}{stage} makes {_article(made)}, and {_article(wanted)} is needed."
    return Problem(Reason.ARTIFACT_MISMATCH, message, hint=hint, field=where)


def _wrong_form(need: Need, where: str, key: Key, stored: frozenset[str]) -> Problem:
    wanted = " or ".join(name for form, name in _FORM_NAMES.items() if form in need.forms)
    outputs = " or ".join(f"outputs.{form}" for form in sorted(need.forms))
    return Problem(
        Reason.ARTIFACT_MISMATCH,
        f"{where}: {key} has no {wanted}: it is stored as {' and '.join(sorted(stored))} only.",
        hint=f"Name a LoRAMerge with {outputs} (its adapters may be none): a new one, because a spec cannot change.",
        field=where,
    )


def _article(noun: str | None) -> str:
    return f"{'an' if noun and noun[0] in 'aeiou' else 'a'} {noun}"
