"""spec.after: who waits for the verdict of an Evaluation, and what becomes of them when it falls."""

import json

import pytest

from builders import (
    CLUSTER,
    digest,
    evaluation,
    failed,
    finished,
    job,
    lora_merge,
    model_server,
    pretrain_job,
    sft_job,
    with_status,
    world,
)
from core.verdicts import BASE, MERGED, MET, MISSED, QUALITY, condition, reported
from herdsman.api.v1alpha1.status import Phase, Reason
from herdsman.core.plan import plan
from herdsman.core.status import is_final, is_refused
from herdsman.core.world import ServerFacts

WAITING = [
    model_server("chat", after=[{"evaluation": "quality"}]),
    lora_merge("exported", after=[{"evaluation": "quality"}]),
    pretrain_job("zh", after=[{"evaluation": "quality"}]),
    sft_job("tuned", after=[{"evaluation": "quality"}]),
    evaluation("larger", after=[{"evaluation": "quality"}]),
]


def others_of(of):
    """The inputs that a resource names, all finished."""
    made = {"ModelServer": [MERGED], "Evaluation": [BASE, MERGED], "LoRAMerge": [BASE, finished(pretrain_job("zh"))]}
    return made.get(of.kind, [BASE])


STATES = {
    "there is none": (None, "ReferenceNotFound", "spec.after[0].evaluation: there is no Evaluation quality"),
    "it has not begun": (QUALITY, "ReferenceNotReady", "waits for Evaluation quality, which is not finished yet"),
    "it runs": (
        reported(QUALITY, BASE, MERGED, jobs=[job(QUALITY)]),
        "ReferenceNotReady",
        "waits for Evaluation quality, which is not finished yet (it is Running)",
    ),
    "it has failed": (
        failed(QUALITY, "zh.txt: not UTF-8."),
        "ReferenceFailed",
        "Evaluation quality has failed: zh.txt",
    ),
    "it came out below": (
        MISSED,
        "ReferenceFailed",
        "Evaluation quality came out below its thresholds: 1 of 1 thresholds not met. text: perplexity of after is",
    ),
}


@pytest.mark.parametrize("of", WAITING, ids=lambda of: of.kind)
@pytest.mark.parametrize("state", STATES)
def test_nothing_begins_before_its_gate_is_open(of, state):
    gate, reason, message = STATES[state]
    after = reported(of, *others_of(of), *([gate] if gate is not None else []))
    assert plan(of, world(*others_of(of), *([gate] if gate else [])), CLUSTER).children == ()
    waits = condition(after, "DependenciesReady")
    assert (waits.status, waits.reason) == ("False", reason)
    assert message in waits.message
    assert after.status.phase is Phase.WAITING
    assert not is_final(after.status)
    assert not is_refused(after.status), "another Evaluation, or another spec.after, lets it go on"


@pytest.mark.parametrize("of", WAITING, ids=lambda of: of.kind)
def test_it_begins_once_the_gate_is_open(of):
    assert plan(of, world(*others_of(of), MET), CLUSTER).children


def test_a_gate_that_closed_says_how_to_go_on():
    waits = condition(reported(WAITING[0], MERGED, MISSED), "DependenciesReady")
    assert "evaluate it under a new name and put that into spec.after" in waits.message
    assert "take Evaluation quality out of spec.after" in waits.message


def test_a_run_that_has_begun_goes_on_whatever_becomes_of_its_gate():
    of = sft_job("tuned", after=[{"evaluation": "quality"}])
    begun = reported(of, BASE, MET, jobs=[job(of)])
    after = reported(begun, BASE, MISSED, jobs=[job(begun)])
    assert after.status.phase is Phase.RUNNING


def test_a_server_goes_on_serving_what_it_serves_while_a_new_model_waits_for_its_gate():
    changed = model_server("chat", after=[{"evaluation": "quality"}], metadata={"generation": 2})
    serving = ServerFacts(replicas=1, ready=1, observed_generation=1, url="http://ms-chat:8000/v1")
    for gate in (QUALITY, MISSED):
        planned = plan(changed, world(MERGED, gate, server=serving), CLUSTER)
        assert (planned.children, planned.unwanted) == ((), ()), "what is there stays as it is"
        after = reported(changed, MERGED, gate, server=serving)
        assert condition(after, "Ready").status == "True"
        assert (
            "as before the last change, which waits: spec.after[0].evaluation"
            in condition(after, "Progressing").message
        )
    assert after.status.phase is Phase.DEGRADED or after.status.phase is Phase.WAITING


def test_a_model_that_was_made_anew_since_has_to_be_evaluated_anew():
    seen = [BASE.status.artifact.digest, MERGED.status.artifact.digest]
    gate = finished(QUALITY, parents=seen)
    server = WAITING[0]
    assert plan(server, world(MERGED, gate), CLUSTER).children
    anew = finished(lora_merge(), digest=digest("made anew"))
    refused = plan(server, world(anew, gate), CLUSTER).refused
    assert refused.reason is Reason.ARTIFACT_MISMATCH
    assert "evaluated LoRAMerge merged before it was made anew" in refused.message
    assert "Delete Evaluation quality and apply it again" in refused.hint


def test_a_gate_may_be_about_other_resources_than_those_that_are_used():
    about = evaluation(
        models=[{"name": "after", "model": {"modelImport": "base"}, "adapters": [{"sftJob": "tuned"}]}],
        thresholds=[],
    )
    gate = finished(about, parents=[BASE.status.artifact.digest, digest("SFTJob tuned")])
    assert plan(WAITING[0], world(MERGED, gate), CLUSTER).children


def test_a_gate_that_waits_for_what_it_lets_pass_is_a_loop():
    of = lora_merge("merged", after=[{"evaluation": "quality"}])
    refused = plan(of, world(BASE, finished(pretrain_job("zh")), QUALITY), CLUSTER).refused
    assert refused.reason is Reason.CYCLE
    assert refused.field == "spec.after[0].evaluation"


def test_a_volume_that_its_gate_writes_is_no_input():
    planned = plan(WAITING[0], world(MERGED, replace_claim(MET)), CLUSTER)
    assert "ev-claim" not in json.dumps(planned.children)


def replace_claim(of):
    moved = of.status.artifact.model_copy(update={"claim": "ev-claim"})
    return with_status(of, of.status.model_copy(update={"artifact": moved}))
