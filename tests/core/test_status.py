"""Conditions, phases and refusals."""

import pytest

from builders import (
    CLUSTER,
    NOW,
    digest,
    failed,
    finished,
    job,
    later,
    lora_merge,
    model_import,
    model_server,
    one_of_each,
    pretrain_job,
    with_status,
    world,
)
from herdsman.api.v1alpha1.status import Status
from herdsman.core.conditions import JOB_CONDITIONS, SERVER_CONDITIONS
from herdsman.core.plan import plan
from herdsman.core.status import invalid_status, is_final, is_refused, status
from herdsman.core.world import Key, WritePath

BASE = finished(model_import())


def report(resource, seen):
    return status(resource, plan(resource, seen, CLUSTER), seen)


def condition(of, kind):
    return next(entry for entry in of.conditions if entry.type == kind)


@pytest.mark.parametrize("resource", one_of_each(), ids=lambda resource: resource.kind)
def test_all_conditions_of_a_kind_are_there_from_the_first_write(resource):
    expected = SERVER_CONDITIONS if resource.kind == "ModelServer" else JOB_CONDITIONS
    found = report(resource, world())
    assert tuple(entry.type for entry in found.conditions) == expected
    assert {entry.observed_generation for entry in found.conditions} == {found.observed_generation} == {1}
    assert {entry.last_transition_time for entry in found.conditions} == {NOW}
    assert all(entry.message for entry in found.conditions)


def test_a_conditions_time_changes_only_with_its_status():
    resource = pretrain_job()
    before = report(resource, world())
    resource = with_status(resource, before)
    after = report(resource, world(BASE, now=later(60)))
    times = {entry.type: entry.last_transition_time for entry in after.conditions}
    assert times["DependenciesReady"] == times["Progressing"] == later(60)
    assert times["Accepted"] == times["Complete"] == times["Failed"] == times["Suspended"] == NOW


def test_times_are_whole_seconds_as_kubernetes_writes_them():
    found = report(pretrain_job(), world(now=NOW.replace(microsecond=123456)))
    assert {entry.last_transition_time for entry in found.conditions} == {NOW}


REFUSALS = [
    ("a spec that contradicts itself", pretrain_job(recipe={"precision": "fp16"}), {}, "Accepted", "InvalidSpec"),
    (
        "a directory of somebody else",
        pretrain_job(),
        {"writers": {WritePath("pj-zh", "."): Key("SFTJob", "x")}},
        "Accepted",
        "PathConflict",
    ),
    ("a name of somebody else", pretrain_job(), {"foreign": [Key("Job", "pj-zh-1")]}, "Accepted", "NameConflict"),
    ("a loop", pretrain_job(adapter={"pretrainJob": "zh"}), {}, "Accepted", "Cycle"),
    ("artifacts that do not fit", lora_merge(), {}, "DependenciesReady", "ArtifactMismatch"),
]


@pytest.mark.parametrize(
    ("resource", "facts", "kind", "reason"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_a_refusal_waits_for_a_human_and_is_not_final(resource, facts, kind, reason):
    adapter = finished(pretrain_job("zh"), base_digest=digest("another base"))
    found = report(resource, world(BASE, *([adapter] if resource.kind == "LoRAMerge" else []), **facts))
    assert (condition(found, kind).status, condition(found, kind).reason) == ("False", reason)
    assert found.phase == "Waiting"
    assert found.failure.reason == reason
    assert found.failure.hint
    assert is_refused(found)
    assert not is_final(found)


def test_a_refusal_passes_with_its_cause():
    conflict = {WritePath("pj-zh", "pretrainjobs/zh"): Key("SFTJob", "x")}
    resource = pretrain_job()
    refused = report(resource, world(BASE, writers=conflict))
    after = report(with_status(resource, refused), world(BASE, now=later(60)))
    assert condition(after, "Accepted").status == "True"
    assert (after.failure, is_refused(after)) == (None, False)


def test_waiting_is_no_refusal():
    for others in ([], [model_import()], [failed(model_import())]):
        found = report(pretrain_job(), world(*others))
        assert (found.phase, found.failure, is_refused(found)) == ("Waiting", None, False)


def test_what_works_is_not_refused_whatever_changed_around_it():
    resource = pretrain_job()
    conflict = {WritePath("pj-zh", "pretrainjobs/zh"): Key("SFTJob", "x")}
    found = report(resource, world(BASE, jobs=[job(resource)], writers=conflict))
    assert (found.phase, is_refused(found), found.failure) == ("Running", False, None)


def test_a_failed_input_is_told_with_its_cause_and_does_not_fail_its_dependants():
    found = report(pretrain_job(), world(failed(model_import(), "shard 2 is missing")))
    assert found.phase == "Waiting"
    told = condition(found, "DependenciesReady")
    assert told.reason == "ReferenceFailed"
    assert "shard 2 is missing" in told.message
    assert "delete ModelImport base and apply it again" in told.message


PROBLEMS = ("spec.stage: Input should be 'LoRA'.", "spec.epochs: unknown field.")


@pytest.mark.parametrize(("kind", "conditions"), [("PretrainJob", JOB_CONDITIONS), ("ModelServer", SERVER_CONDITIONS)])
def test_an_invalid_resource_is_told_every_wrong_field(kind, conditions):
    found = invalid_status(None, 4, PROBLEMS, NOW, kind)
    assert tuple(entry.type for entry in found.conditions) == conditions
    assert condition(found, "Accepted").reason == "InvalidSpec"
    assert all(problem in condition(found, "Accepted").message for problem in PROBLEMS)
    assert (found.phase, found.observed_generation, found.failure.reason) == ("Waiting", 4, "InvalidSpec")
    assert is_refused(found)


def test_an_invalid_resource_fed_back_changes_nothing():
    first = invalid_status(None, 1, PROBLEMS, NOW)
    assert invalid_status(first, 1, PROBLEMS, later(60)) == first


def test_a_resource_that_became_invalid_keeps_what_was_known():
    resource = pretrain_job()
    running = report(resource, world(BASE, jobs=[job(resource)]))
    found = invalid_status(running, 2, PROBLEMS, later(60))
    assert found.phase == "Running"
    assert found.attempts == running.attempts
    assert condition(found, "Accepted").last_transition_time == later(60)
    assert condition(found, "Progressing").last_transition_time == NOW


def test_a_server_that_became_invalid_stays_a_server():
    found = invalid_status(report(model_server(), world()), 2, PROBLEMS, later(60))
    assert tuple(entry.type for entry in found.conditions) == SERVER_CONDITIONS


@pytest.mark.parametrize("over", [finished(pretrain_job()), failed(pretrain_job())], ids=["Succeeded", "Failed"])
def test_an_end_is_not_undone_by_an_invalid_spec(over):
    found = invalid_status(over.status, 2, PROBLEMS, later(60))
    assert found.phase == over.status.phase
    assert is_final(found)
    assert found.observed_generation == 2


def test_an_empty_status_is_neither_final_nor_refused():
    assert (is_final(Status()), is_refused(Status())) == (False, False)


def test_a_very_long_list_of_problems_fits_the_status():
    found = invalid_status(None, 1, ["spec.x: wrong." * 50] * 50, NOW)
    assert len(condition(found, "Accepted").message) == 2048
