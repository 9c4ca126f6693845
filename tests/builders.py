"""Nouns with modifiers: resources, artifacts, Jobs and worlds for tests of the core and of the shells.

A spec's members are given as in a manifest (camelCase), a name of a volume as a string:
`pretrain_job("zh", model={"modelImport": "base"}, compute={"nodes": 2})`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from herdsman.api.exit_codes import TerminationMessage
from herdsman.api.meta import Condition
from herdsman.api.v1alpha1.evaluation import Evaluation
from herdsman.api.v1alpha1.instruction_set import InstructionSet
from herdsman.api.v1alpha1.lora_merge import LoRAMerge
from herdsman.api.v1alpha1.model_import import ModelImport
from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.pretrain_job import PretrainJob
from herdsman.api.v1alpha1.registry import KINDS, AnyResource
from herdsman.api.v1alpha1.sft_job import SFTJob
from herdsman.api.v1alpha1.status import Artifact, Attempt, Failure, Phase, Progress, Status
from herdsman.api.v1alpha1.tokenizer_merge import TokenizerMerge
from herdsman.core import names, references
from herdsman.core.site import Site
from herdsman.core.world import JobFacts, Key, PodFacts, ServerFacts, VolumeFacts, World, WritePath

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CLUSTER = Site()
LAPTOP = Site(
    volumes_root="/home/me/.herdsman/volumes",
    config_file="/home/me/.herdsman/configs/{name}.json",
    python="/venv/bin/python",
    master_address="127.0.0.1",
    master_ports=range(29500, 29600),
    metrics_port=0,
    local=True,
)


def later(seconds: float) -> datetime:
    """The time so many seconds after NOW."""
    return NOW + timedelta(seconds=seconds)


def digest(of: str) -> str:
    """A SHA-256 in hexadecimal that stands for something with this name."""
    return hashlib.sha256(of.encode()).hexdigest()


def manifest(kind: str, name: str, spec: Mapping[str, Any], **metadata: Any) -> dict[str, Any]:
    """A manifest as it stands in a file."""
    return {
        "apiVersion": "herdsman.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, **metadata},
        "spec": dict(spec),
    }


def resource(kind: str, name: str, spec: Mapping[str, Any], **metadata: Any) -> Any:
    """A resource of any kind, as a shell reads it; its uid follows from kind and name."""
    body = manifest(kind, name, spec, **{"uid": f"uid-{KINDS[kind].short}-{name}", **metadata})
    return KINDS[kind].model.parse(json.dumps(body))


def model_import(name: str = "base", *, metadata: Mapping[str, Any] | None = None, **spec: Any) -> ModelImport:
    spec.setdefault("source", {"volume": {"claim": "weights", "path": "llama"}})
    return resource("ModelImport", name, spec, **(metadata or {}))


def new_model(name: str = "base", *, tokenizer: Mapping[str, Any] | None = None, **sizes: Any) -> ModelImport:
    """A ModelImport that initialises a model."""
    reference = tokenizer or {"volume": {"claim": "tokenizers", "path": "llama"}}
    return model_import(name, source={"initialise": {"tokenizer": reference, **sizes}})


def tokenizer_merge(
    name: str = "zh-tokenizer", *, metadata: Mapping[str, Any] | None = None, **spec: Any
) -> TokenizerMerge:
    spec.setdefault("base", {"modelImport": "base"})
    spec.setdefault("sources", [{"volume": {"claim": "tokenizers", "path": "zh.model"}}])
    return resource("TokenizerMerge", name, spec, **(metadata or {}))


def pretrain_job(name: str = "zh", *, metadata: Mapping[str, Any] | None = None, **spec: Any) -> PretrainJob:
    spec.setdefault("model", {"modelImport": "base"})
    spec.setdefault("dataset", {"volume": {"claim": "corpora", "path": "zh"}})
    return resource("PretrainJob", name, spec, **(metadata or {}))


def instruction_set(name: str = "records", *, metadata: Mapping[str, Any] | None = None, **spec: Any) -> InstructionSet:
    if "generate" not in spec:
        spec.setdefault("sources", [{"dataset": {"volume": {"claim": "instructions"}}}])
    return resource("InstructionSet", name, spec, **(metadata or {}))


def sft_job(name: str = "tuned", *, metadata: Mapping[str, Any] | None = None, **spec: Any) -> SFTJob:
    spec.setdefault("model", {"modelImport": "base"})
    spec.setdefault("dataset", {"volume": {"claim": "instructions"}})
    return resource("SFTJob", name, spec, **(metadata or {}))


def lora_merge(name: str = "merged", *, metadata: Mapping[str, Any] | None = None, **spec: Any) -> LoRAMerge:
    spec.setdefault("model", {"modelImport": "base"})
    spec.setdefault("adapters", [{"pretrainJob": "zh"}])
    return resource("LoRAMerge", name, spec, **(metadata or {}))


def evaluation(name: str = "quality", *, metadata: Mapping[str, Any] | None = None, **spec: Any) -> Evaluation:
    """An Evaluation of a base and what was merged of it, by default with one threshold on the second's perplexity."""
    spec.setdefault(
        "models",
        [{"name": "before", "model": {"modelImport": "base"}}, {"name": "after", "model": {"loraMerge": "merged"}}],
    )
    spec.setdefault("tasks", [{"name": "text", "perplexity": {"dataset": {"volume": {"claim": "corpora"}}}}])
    spec.setdefault("thresholds", [{"task": "text", "metric": "perplexity", "model": "after", "atMost": 12}])
    return resource("Evaluation", name, spec, **(metadata or {}))


def model_server(name: str = "chat", *, metadata: Mapping[str, Any] | None = None, **spec: Any) -> ModelServer:
    spec.setdefault("model", {"loraMerge": "merged"})
    return resource("ModelServer", name, spec, **(metadata or {}))


def one_of_each() -> list[AnyResource]:
    """The chain: a base, a larger tokenizer, two trainings, a merge and a server."""
    return [
        model_import("base"),
        tokenizer_merge("zh-tokenizer"),
        pretrain_job("zh", tokenizer={"tokenizerMerge": "zh-tokenizer"}),
        instruction_set("records"),
        sft_job("tuned", adapter={"pretrainJob": "zh"}, dataset={"instructionSet": "records"}),
        lora_merge("merged", adapters=[{"sftJob": "tuned"}]),
        evaluation("quality", thresholds=[]),
        model_server("chat", model={"loraMerge": "merged"}),
    ]


def with_status(of: Any, status: Status | None) -> Any:
    """The resource with another status."""
    return of.model_copy(update={"status": status})


def suspended(of: Any, suspend: bool = True) -> Any:
    """The resource with spec.suspend set, as its next generation."""
    spec = of.spec.model_copy(update={"suspend": suspend})
    meta = of.metadata.model_copy(update={"generation": of.metadata.generation + 1})
    return of.model_copy(update={"spec": spec, "metadata": meta})


ARTIFACT_KINDS = {
    "ModelImport": "model",
    "TokenizerMerge": "tokenizer",
    "PretrainJob": "adapter",
    "InstructionSet": "dataset",
    "SFTJob": "adapter",
    "LoRAMerge": "model",
    "Evaluation": "report",
}


def artifact(of: Any, **fields: Any) -> Artifact:
    """The artifact a resource would have made: 32,000 rows, in bfloat16."""
    kind = ARTIFACT_KINDS[of.kind]
    if of.kind == "PretrainJob" and of.spec.stage == "Full":
        kind = "model"
    defaults = {
        "kind": kind,
        "claim": names.claim(of.kind, of.metadata.name),
        "path": f"{names.default_path(of.kind, of.metadata.name)}/artifact",
        "digest": digest(f"{of.kind} {of.metadata.name}"),
        "bytes": 13_476_831_232 if kind == "model" else 5_000_000,
        "vocab_size": None if kind == "dataset" else 32000,
        "tokenizer_digest": None if kind == "dataset" else digest("llama tokenizer"),
        "base_digest": digest("ModelImport base") if kind == "adapter" else None,
        "dtype": "bfloat16" if kind in ("model", "adapter") else None,
    }
    return Artifact(**{**defaults, **fields})


def _condition(kind: str, status: str, reason: str, message: str, generation: int) -> Condition:
    return Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message,
        observed_generation=generation,
        last_transition_time=NOW,
    )


def checked(of: Any) -> Any:
    """The training after its preflight, which was its first attempt."""
    passed = Attempt(number=1, started=NOW, ended=NOW, exit_code=0, reason="Succeeded", counted=False, preflight=True)
    return with_status(of, Status(attempts=[passed]))


def finished(of: Any, **fields: Any) -> Any:
    """The resource after its run succeeded; `fields` change its artifact, or give it as artifact=..."""
    made = fields.pop("artifact", None) or artifact(of, **fields)
    conditions = [_condition("Complete", "True", "Succeeded", "The run is finished.", of.metadata.generation)]
    return with_status(of, Status(phase=Phase.SUCCEEDED, conditions=conditions, artifact=made))


def answering(of: Any, url: str = "http://ms-chat.default.svc:8000/v1") -> Any:
    """The server, ready."""
    conditions = [_condition("Ready", "True", "Ready", "1 of 1 replicas answer.", of.metadata.generation)]
    return with_status(of, Status(phase=Phase.READY, conditions=conditions, url=url))


def failed(of: Any, message: str = "data.jsonl, line 3: not JSON.") -> Any:
    """The resource after its run failed for good."""
    conditions = [_condition("Failed", "True", "BadInput", message, of.metadata.generation)]
    failure = Failure(reason="BadInput", message=message)
    return with_status(of, Status(phase=Phase.FAILED, conditions=conditions, failure=failure))


def pod(name: str = "pod", **facts: Any) -> PodFacts:
    return PodFacts(name=name, **facts)


def said(reason: str, message: str = "", **fields: Any) -> TerminationMessage:
    """A trainer's last words."""
    return TerminationMessage(reason=reason, message=message, **fields)


def job(of: Any, attempt: int = 1, state: str = "Running", **facts: Any) -> JobFacts:
    """The Job of an attempt, started an hour's start after NOW per attempt."""
    facts.setdefault("started", None if state == "Pending" else later(1000 * (attempt - 1)))
    if state in ("Complete", "Failed"):
        facts.setdefault("ended", later(1000 * (attempt - 1) + 500))
    return JobFacts(name=names.job(of.kind, of.metadata.name, attempt), attempt=attempt, state=state, **facts)


def ended(of: Any, exit_code: int, attempt: int = 1, *, step: int | None = None, **pod_facts: Any) -> JobFacts:
    """The Job of an attempt whose only pod ended with this code."""
    pod_facts.setdefault("phase", "Succeeded" if exit_code == 0 else "Failed")
    facts = {"progress": Progress(step=step)} if step is not None else {}
    name = f"{names.job(of.kind, of.metadata.name, attempt)}-0-abcde"
    state = "Complete" if exit_code == 0 else "Failed"
    return job(of, attempt, state, pods=(pod(name, exit_code=exit_code, **pod_facts),), **facts)


def done(of: Any, attempt: int = 1, *, made: Artifact | None = None, **facts: Any) -> JobFacts:
    """The Job of an attempt that succeeded, with its artifact in the termination message."""
    last_words = said("Succeeded", artifact=made or artifact(of), step=facts.pop("step", None))
    return job(of, attempt, "Complete", pods=(pod(exit_code=0, phase="Succeeded", termination=last_words),), **facts)


def volume(claim: str, *modes: str) -> VolumeFacts:
    return VolumeFacts(claim, modes or ("ReadWriteMany",))


def world(
    *others: Any,
    jobs: Iterable[JobFacts] = (),
    now: datetime = NOW,
    volumes: Iterable[VolumeFacts | str] | None = None,
    writers: Mapping[WritePath, Key] | None = None,
    foreign: Iterable[Key] = (),
    server: ServerFacts | None = None,
) -> World:
    """A snapshot with these other resources; unless given, all volumes of `others` and of the builders exist."""
    known = ("weights", "tokenizers", "corpora", "instructions")
    made = [other.status.artifact.claim for other in others if other.status and other.status.artifact]
    listed = [*known, *made] if volumes is None else volumes
    facts = [volume(entry) if isinstance(entry, str) else entry for entry in listed]
    return World(
        now=now,
        jobs={entry.name: entry for entry in jobs},
        server=server,
        resources={references.key_of(other): other for other in others},
        volumes={entry.claim: entry for entry in facts},
        writers=dict(writers or {}),
        foreign=frozenset(foreign),
    )
