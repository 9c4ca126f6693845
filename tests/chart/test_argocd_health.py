"""The health checks for Argo CD, run by Lua over what the core reports."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from admission import PROJECT
from builders import (
    CLUSTER,
    NOW,
    digest,
    done,
    ended,
    evaluation,
    failed,
    finished,
    job,
    lora_merge,
    model_import,
    model_server,
    one_of_each,
    pod,
    pretrain_job,
    sft_job,
    suspended,
    with_status,
    world,
)
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.api.v1alpha1.status import Metric, Progress
from herdsman.core.plan import plan
from herdsman.core.status import invalid_status, status
from herdsman.core.world import ActivatorFacts, Key, PodFacts, ServerFacts
from herdsman.generate.chart import HEALTH_SCRIPT, argocd_files

BASE = finished(model_import())
MERGED = finished(lora_merge())


def health(of: Any, **metadata: Any) -> tuple[str, str]:
    """What Argo CD shows of a resource: the status and the message."""
    lua = pytest.importorskip("lupa.lua51", reason="needs lupa, which runs Lua: pip install lupa")
    runtime = lua.LuaRuntime(unpack_returned_tuples=True)
    body = of.to_json() if hasattr(of, "to_json") else of
    body = {**body, "metadata": {**body["metadata"], **metadata}}
    runtime.globals().obj = runtime.table_from(body, recursive=True)
    answer = runtime.execute(HEALTH_SCRIPT.read_text(encoding="utf-8"))
    return answer.status, answer.message


def reported(of: Any, seen: Any) -> Any:
    """The resource with the status the core gives it."""
    return with_status(of, status(of, plan(of, seen, CLUSTER), seen))


def server(replicas: int = 1, ready: int = 0, generation: int = 1, *pods: PodFacts) -> ServerFacts:
    return ServerFacts(replicas=replicas, ready=ready, observed_generation=generation, url="http://ms-chat", pods=pods)


def of_run(seen: Any = None, **facts: Any) -> Any:
    run = pretrain_job()
    return reported(run, seen or world(BASE, **facts))


def of_server(facts: ServerFacts | None, **spec: Any) -> Any:
    return reported(model_server(**spec), world(MERGED, server=facts))


def asleep(activators: int) -> Any:
    facts = ServerFacts(observed_generation=1, url="http://ms-chat", wanted=0, asleep=True)
    there = replace(world(MERGED, server=facts), activator=ActivatorFacts(ready=activators))
    return reported(model_server(scaleToZero={}), there)


def evaluated(perplexity: float) -> Any:
    """An Evaluation after its run, with this figure for its one threshold of at most 12."""
    report = (Metric(name="threshold_0", value=str(perplexity)),)
    return reported(evaluation(), world(BASE, MERGED, jobs=[done(evaluation(), report=report)]))


RUN = pretrain_job()
GATED = model_server(after=[{"evaluation": "quality"}])
CHANGED = model_server(model={"loraMerge": "next"}, metadata={"generation": 2})
BAD_IMAGE = pod(reason="ImagePullBackOff", message="no such image")
NO_NODE = pod(reason="Unschedulable", message="0/3 nodes are available")
STATES: dict[str, tuple[Any, str, str]] = {
    "nobody has looked": (pretrain_job(), "Progressing", "not looked at it yet"),
    "waits for a model that does not exist": (of_run(world()), "Progressing", "ModelImport base"),
    "waits for a model that is being made": (of_run(world(model_import())), "Progressing", "ModelImport base"),
    "waits for a model that has failed": (
        of_run(world(failed(model_import(), "shard 2 is missing"))),
        "Degraded",
        "shard 2 is missing",
    ),
    "is about to start": (of_run(), "Progressing", "Attempt 1"),
    "runs": (
        of_run(jobs=[job(RUN, progress=Progress(percent=40, step=4, total_steps=10))]),
        "Progressing",
        "40 % done. Attempt 1 works",
    ),
    "is between two attempts": (of_run(jobs=[ended(RUN, 75)]), "Progressing", "Attempt 2"),
    "waits in a queue": (
        reported(
            pretrain_job(compute={"queueName": "gpus"}),
            world(BASE, jobs=[job(RUN, state="Suspended")]),
        ),
        "Progressing",
        "in the queue gpus",
    ),
    "finds no node": (of_run(jobs=[job(RUN, state="Pending", pods=(NO_NODE,))]), "Progressing", "0/3 nodes"),
    "has no image": (of_run(jobs=[job(RUN, state="Pending", pods=(BAD_IMAGE,))]), "Degraded", "no such image"),
    "has succeeded": (of_run(jobs=[done(RUN)]), "Healthy", "artifact is complete"),
    "has failed": (reported(failed(RUN), world(BASE)), "Degraded", "data.jsonl, line 3: not JSON."),
    "is suspended before its start": (reported(suspended(RUN), world(BASE)), "Suspended", "spec.suspend"),
    "is suspended before its inputs are there": (reported(suspended(RUN), world()), "Suspended", "spec.suspend"),
    "is refused": (
        reported(pretrain_job(recipe={"precision": "fp16"}), world(BASE)),
        "Degraded",
        "precision",
    ),
    "would write over somebody else's object": (
        reported(RUN, world(BASE, foreign=[Key("Job", "pj-zh-1")])),
        "Degraded",
        "pj-zh-1 exists already",
    ),
    "has inputs that do not fit": (
        reported(lora_merge(), world(BASE, finished(RUN, base_digest=digest("another")))),
        "Degraded",
        "",
    ),
    "is invalid": (
        with_status(sft_job(), invalid_status(None, 1, ["spec.x: unknown field."], NOW, "SFTJob")),
        "Degraded",
        "spec.x: unknown field. Correct the manifest",
    ),
    "a server starts": (of_server(server()), "Progressing", "0 of 1 replicas answer"),
    "a server waits for its model": (reported(model_server(), world()), "Progressing", "LoRAMerge merged"),
    "a server serves": (of_server(server(1, 1)), "Healthy", "1 of 1 replicas answer"),
    "a server is rolled out": (
        of_server(server(3, 2), replicas=3),
        "Progressing",
        "2 of 3 replicas answer",
    ),
    "a server keeps serving while a new replica has no image": (
        of_server(server(2, 1, 1, BAD_IMAGE), replicas=2),
        "Degraded",
        "no such image",
    ),
    "a server answers with its older configuration": (of_server(server(1, 1, 0)), "Progressing", "1 of 1 replicas"),
    "a server's next model is in the making": (
        reported(CHANGED, world(lora_merge("next"), server=server(1, 1))),
        "Progressing",
        "as before the last change, which waits",
    ),
    "a server's next model has failed": (
        reported(CHANGED, world(failed(lora_merge("next"), "disk full"), server=server(1, 1))),
        "Degraded",
        "disk full",
    ),
    "the model of a server that serves was deleted": (
        reported(model_server(), world(server=server(1, 1))),
        "Healthy",
        "1 of 1 replicas answer",
    ),
    "an evaluation met its thresholds": (evaluated(11.5), "Healthy", "artifact is complete"),
    "an evaluation came out below its thresholds": (
        evaluated(12.5),
        "Degraded",
        "text: perplexity of after is 12.5, and at most 12 is asked",
    ),
    "a server waits for an evaluation that runs": (
        reported(GATED, world(MERGED, reported(evaluation(), world(BASE, MERGED, jobs=[job(evaluation())])))),
        "Progressing",
        "waits for Evaluation quality, which is not finished yet (it is Running)",
    ),
    "a server's evaluation came out below its thresholds": (
        reported(GATED, world(MERGED, evaluated(12.5))),
        "Degraded",
        "Evaluation quality came out below its thresholds",
    ),
    "what a server serves stays while a better model is not found": (
        reported(GATED, world(MERGED, evaluated(12.5), server=server(1, 1))),
        "Healthy",
        "1 of 1 replicas answer",
    ),
    "a server is scaled to nothing": (of_server(server(0, 0), replicas=0), "Suspended", "replicas"),
    "a server sleeps while nobody asks": (asleep(1), "Healthy", "Requests are taken, and held"),
    "a server sleeps and nothing would wake it": (asleep(0), "Degraded", "no activator is ready"),
    "a server's model has failed": (
        reported(model_server(), world(failed(lora_merge(), "disk full"))),
        "Degraded",
        "disk full",
    ),
}


@pytest.mark.parametrize("what", STATES)
def test_argo_cd_shows_what_the_core_reports(what):
    resource, expected, words = STATES[what]
    shown, message = health(resource)
    assert (shown, words in message) == (expected, True), message
    assert message


@pytest.mark.parametrize("resource", one_of_each(), ids=lambda resource: resource.kind)
def test_an_old_status_is_no_health(resource):
    over = with_status(resource, invalid_status(None, 1, ["spec.x: wrong."], NOW, resource.kind))
    assert health(over)[0] == "Degraded"
    assert health(over, generation=2) == ("Progressing", "The operator has not looked at its last change yet.")


@pytest.mark.parametrize("what", STATES)
def test_whatever_is_being_deleted_is_progressing(what):
    assert health(STATES[what][0], deletionTimestamp="2026-01-01T00:00:00Z")[0] == "Progressing"


def test_a_failure_says_what_to_do():
    run = of_run(jobs=[ended(RUN, 43)])
    assert run.status.failure.hint
    assert health(run) == ("Degraded", f"{run.status.failure.message} {run.status.failure.hint}")


ODD = {
    "an empty status": {},
    "no conditions": {"conditions": []},
    "a condition without a message": {
        "observedGeneration": 1,
        "conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted"}],
    },
    "a condition of tomorrow": {
        "observedGeneration": 1,
        "conditions": [{"type": "Blessed", "status": "False", "reason": "Cursed", "message": "x"}],
    },
    "a reason of tomorrow": {
        "observedGeneration": 1,
        "conditions": [{"type": "Progressing", "status": "True", "reason": "Dreaming", "message": "x"}],
    },
}


@pytest.mark.parametrize("what", ODD)
def test_a_status_it_does_not_know_is_progressing_and_no_error(what):
    body = {"kind": "PretrainJob", "metadata": {"name": "x", "generation": 1}, "status": ODD[what]}
    assert health(body)[0] == "Progressing"


def test_the_same_check_is_given_to_argo_cd_for_every_kind():
    files = argocd_files()
    checks = yaml.safe_load(files["argocd-cm.yaml"])["data"]
    assert set(checks) == {f"resource.customizations.health.herdsman.dev_{kind}" for kind in KINDS}
    assert set(checks.values()) == {HEALTH_SCRIPT.read_text(encoding="utf-8")}
    assert yaml.safe_load(files["argo-cd-values.yaml"]) == {"configs": {"cm": checks}}


def test_the_script_uses_nothing_that_argo_cd_withholds():
    script = HEALTH_SCRIPT.read_text(encoding="utf-8")
    assert [word for word in ("require", "io.", "os.", "print(", "load(") if word in script] == []
    assert (PROJECT / "gitops/argocd/health/health.lua").read_text(encoding="utf-8") == script
