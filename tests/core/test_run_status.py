"""A run over its attempts: restarts, waiting, deadlines, suspension, and what is remembered."""

import pytest

from builders import (
    CLUSTER,
    LAPTOP,
    NOW,
    artifact,
    done,
    ended,
    finished,
    job,
    later,
    model_import,
    pod,
    pretrain_job,
    said,
    suspended,
    with_status,
    world,
)
from herdsman.api.v1alpha1.status import Attempt, CheckpointStatus, Progress, Status
from herdsman.core.attempts import MAX_KEPT
from herdsman.core.plan import plan
from herdsman.core.status import status

BASE = finished(model_import())
ZH = pretrain_job("zh")


def step(resource, *, jobs=(), now=NOW, site=CLUSTER, others=(BASE,)):
    """Plan and report once; returns (plan, the resource with the new status)."""
    seen = world(*others, jobs=jobs, now=now)
    planned = plan(resource, seen, site)
    return planned, with_status(resource, status(resource, planned, seen))


def attempts(count, *, reason="Crashed", counted=True, exit_code=1, seconds=500, gap=1000, **more):
    return [
        Attempt(
            number=number,
            started=later(gap * (number - 1)),
            ended=later(gap * (number - 1) + seconds),
            reason=reason,
            counted=counted,
            exit_code=exit_code,
            **more,
        )
        for number in range(1, count + 1)
    ]


def tried(resource, *args, **kwargs):
    return with_status(resource, Status(attempts=attempts(*args, **kwargs)))


def job_name(planned):
    return next((child["metadata"]["name"] for child in planned.children if child["kind"] == "Job"), None)


def test_a_run_begins_with_attempt_one():
    planned, after = step(ZH)
    assert (planned.attempt, job_name(planned)) == (1, "pj-zh-1")
    assert after.status.attempts == []
    assert after.status.phase == "Pending"


def test_a_living_attempt_is_planned_again_as_it_is():
    first, resource = step(ZH)
    again, resource = step(resource, jobs=[job(ZH)])
    assert again.children == first.children
    assert resource.status.phase == "Running"
    assert [(a.number, a.ended, a.counted) for a in resource.status.attempts] == [(1, None, False)]


def test_a_recorded_attempt_without_a_job_is_made_again_under_its_number():
    _, resource = step(ZH, jobs=[job(ZH)])
    planned, resource = step(resource)
    assert (planned.attempt, job_name(planned)) == (1, "pj-zh-1")
    assert len(resource.status.attempts) == 1


def test_a_fault_is_followed_by_the_next_attempt_after_a_pause():
    crashed = [ended(ZH, 1)]
    waiting, resource = step(ZH, jobs=crashed, now=later(505))
    assert (waiting.children, waiting.not_before, waiting.requeue_after) == ((), later(510), 5.0)
    assert resource.status.phase == "Pending"
    assert resource.status.restarts == 1
    assert "Attempt 2 starts at 2026-01-02T03:12:35Z" in message(resource, "Progressing")
    planned, resource = step(resource, jobs=crashed, now=later(510))
    assert job_name(planned) == "pj-zh-2"


def message(resource, kind):
    return next(entry.message for entry in resource.status.conditions if entry.type == kind)


@pytest.mark.parametrize(
    ("faults", "cluster", "laptop"),
    [(1, 10, 0), (2, 20, 10), (3, 40, 20), (5, 160, 80), (6, 300, 160), (40, 300, 300)],
)
def test_the_pause_doubles_up_to_five_minutes_and_the_first_is_left_out_on_one_machine(faults, cluster, laptop):
    resource = tried(pretrain_job("zh", maxRestarts=100), faults)
    last = resource.status.attempts[-1].ended
    for site, seconds in ((CLUSTER, cluster), (LAPTOP, laptop)):
        planned, _ = step(resource, now=last, site=site)
        waited = (planned.not_before - last).total_seconds() if planned.not_before else 0
        assert waited == seconds


def test_an_interruption_is_followed_at_once_and_does_not_count():
    interrupted = ended(ZH, 75, termination=said("Interrupted", "stopped", step=40, resumed_from_step=20))
    planned, resource = step(ZH, jobs=[interrupted], now=later(500))
    assert job_name(planned) == "pj-zh-2"
    assert resource.status.restarts == 0
    (recorded,) = resource.status.attempts
    assert (recorded.reason, recorded.exit_code, recorded.counted) == ("Interrupted", 75, False)
    assert (recorded.started, recorded.ended, recorded.resumed_from_step) == (NOW, later(500), 20)


def test_an_attempt_ends_when_its_last_pod_does_where_the_job_does_not_say():
    pods = (
        pod("a", exit_code=1, phase="Failed", ended=later(30)),
        pod("b", index=1, exit_code=143, phase="Failed", ended=later(40)),
        pod("c", index=2, phase="Failed"),
    )
    _, after = step(ZH, jobs=[job(ZH, state="Failed", pods=pods, ended=None)], now=later(99))
    assert after.status.attempts[0].ended == later(40)
    _, after = step(ZH, jobs=[job(ZH, state="Failed", pods=pods[2:], ended=None)], now=later(99))
    assert after.status.attempts[0].ended == later(99)


def test_a_hundred_interruptions_do_not_use_up_the_restarts():
    planned, after = step(tried(ZH, 100, reason="Interrupted", counted=False, exit_code=75), now=later(200_000))
    assert planned.attempt == 101
    assert after.status.restarts == 0
    assert len(after.status.attempts) == MAX_KEPT


def test_interruptions_in_quick_succession_are_slowed_down_on_a_cluster():
    resource = tried(ZH, 3, reason="Interrupted", counted=False, exit_code=75, seconds=5)
    last = resource.status.attempts[-1].ended
    assert step(resource, now=last)[0].not_before == later(2005 + 10)
    assert step(resource, now=last, site=LAPTOP)[0].not_before is None


def test_history_beyond_what_the_status_holds_forgets_the_oldest_uncounted_attempts_first():
    old = attempts(2) + [a.model_copy(update={"number": a.number + 2}) for a in attempts(99, counted=False)]
    resource = with_status(pretrain_job("zh", maxRestarts=50), Status(attempts=old[:100]))
    _, after = step(resource, jobs=[ended(resource, 1, attempt=101)], now=later(10**6))
    kept = [attempt.number for attempt in after.status.attempts]
    assert len(kept) == MAX_KEPT
    assert kept[:3] == [1, 2, 4]
    assert kept[-1] == 101
    assert after.status.restarts == 3


@pytest.mark.parametrize("code", [42, 43])
def test_what_no_retry_mends_fails_at_once(code):
    planned, after = step(ZH, jobs=[ended(ZH, code, termination=said("BadInput", "data.jsonl is empty"))])
    assert planned.children == ()
    assert after.status.phase == "Failed"
    assert after.status.failure.message == "data.jsonl is empty"
    assert "data.jsonl is empty" in message(after, "Failed")


def test_what_no_retry_mends_is_known_from_the_record_when_the_job_is_gone():
    _, after = step(tried(ZH, 1, reason="BadInput", exit_code=42, counted=False))
    assert after.status.phase == "Failed"


@pytest.mark.parametrize(("allowed", "faults", "phase"), [(3, 3, "Pending"), (3, 4, "Failed"), (0, 1, "Failed")])
def test_restarts_end_where_max_restarts_says(allowed, faults, phase):
    resource = tried(pretrain_job("zh", maxRestarts=allowed), faults - 1)
    _, after = step(resource, jobs=[ended(resource, 1, attempt=faults)], now=later(10**5))
    assert after.status.phase == phase
    if phase == "Failed":
        assert after.status.failure.reason == "MaxRestartsExceeded"
        assert f"Restarted {allowed} times" in after.status.failure.message
        assert "Crashed" in after.status.failure.message
        assert after.status.restarts == allowed


def test_want_of_memory_twice_from_the_same_checkpoint_fails_with_a_hint():
    first = ended(ZH, 137, reason="OOMKilled")
    _, resource = step(ZH, jobs=[first], now=later(500))
    assert resource.status.phase == "Pending"
    _, resource = step(resource, jobs=[first, ended(ZH, 137, attempt=2, reason="OOMKilled")], now=later(1500))
    assert resource.status.phase == "Failed"
    assert resource.status.failure.reason == "OutOfMemory"
    assert "second time in a row" in resource.status.failure.message
    assert "microSequences" in resource.status.failure.hint


def test_want_of_memory_is_tried_again_when_a_checkpoint_was_made_in_between():
    progressed = [
        *attempts(1, reason="OutOfMemory", exit_code=137),
        Attempt(number=2, started=later(1000), resumed_from_step=200, counted=False),
    ]
    resource = with_status(ZH, Status(attempts=progressed))
    _, after = step(resource, jobs=[ended(ZH, 137, attempt=2, reason="OOMKilled")], now=later(1500))
    assert after.status.phase == "Pending"


def test_want_of_memory_is_tried_again_when_the_steps_are_known_to_differ():
    jobs = [ended(ZH, 137, 1, step=10, reason="OOMKilled"), ended(ZH, 137, 2, step=90, reason="OOMKilled")]
    _, after = step(ZH, jobs=jobs, now=later(1500))
    assert after.status.phase == "Pending"


def test_an_attempt_remembers_the_checkpoint_it_started_from_though_it_was_killed():
    resource = with_status(ZH, Status(attempts=attempts(1), checkpoint=CheckpointStatus(step=400)))
    newer = CheckpointStatus(step=600, verified=True)
    _, resource = step(resource, jobs=[job(ZH, 2, checkpoint=newer)], now=later(1500))
    _, resource = step(resource, jobs=[ended(ZH, 137, attempt=2)], now=later(1500))
    assert resource.status.attempts[-1].resumed_from_step == 400


def test_success_is_the_end():
    planned, after = step(ZH, jobs=[done(ZH)])
    assert planned.children == ()
    assert after.status.phase == "Succeeded"
    assert after.status.artifact == artifact(ZH)
    assert [(a.reason, a.exit_code, a.counted) for a in after.status.attempts] == [("Succeeded", 0, False)]


def test_a_success_without_words_about_the_place_is_placed_by_the_spec():
    _, after = step(ZH, jobs=[done(ZH, made=artifact(ZH, claim="", path=""))])
    assert (after.status.artifact.claim, after.status.artifact.path) == ("pj-zh", "pretrainjobs/zh/artifact")


@pytest.mark.parametrize("end", [done(ZH), ended(ZH, 42)], ids=["Succeeded", "Failed"])
def test_an_end_is_never_undone(end):
    _, over = step(ZH, jobs=[end])
    for jobs in ([], [job(ZH, 2)], [ended(ZH, 1)], [done(ZH)]):
        planned, after = step(over, jobs=jobs, now=later(10**6), others=())
        assert planned.children == ()
        assert after.status == over.status


def test_an_end_is_not_undone_by_more_restarts_or_by_suspension():
    spent = tried(pretrain_job("zh", maxRestarts=0), 1)
    _, over = step(spent)
    more = over.model_copy(update={"spec": over.spec.model_copy(update={"max_restarts": 9})})
    for resource in (more, suspended(over)):
        planned, after = step(resource)
        assert planned.children == ()
        assert after.status.phase == "Failed"
    assert after.status.observed_generation == 2
    assert {entry.observed_generation for entry in after.status.conditions} == {2}


def test_a_finished_runs_jobs_are_forgotten_in_time():
    resource = pretrain_job("zh", ttlSecondsAfterFinished=3600)
    _, over = step(resource, jobs=[done(resource)], now=later(500))
    early, _ = step(over, jobs=[done(resource)], now=later(1500))
    late, _ = step(over, jobs=[done(resource)], now=later(5000))
    assert (early.expired, early.requeue_after) == ((), 2600)
    assert (late.expired, late.requeue_after) == (("pj-zh-1",), None)
    assert step(over, now=later(5000))[0].expired == ()


def test_without_a_time_to_live_nothing_is_forgotten():
    _, over = step(ZH, jobs=[done(ZH)])
    assert step(over, jobs=[done(ZH)], now=later(10**9))[0].expired == ()


def test_a_run_past_its_deadline_is_stopped_and_fails():
    resource = pretrain_job("zh", activeDeadlineSeconds=600)
    running = job(resource)
    planned, after = step(resource, jobs=[running], now=later(590))
    assert (planned.requeue_after, after.status.phase) == (11, "Running")
    planned, after = step(after, jobs=[running], now=later(601))
    (made,) = (child for child in planned.children if child["kind"] == "Job")
    assert made["spec"]["suspend"] is True
    assert after.status.phase == "Failed"
    assert after.status.failure.reason == "DeadlineExceeded"
    assert after.status.attempts[0].ended == later(601)
    assert "activeDeadlineSeconds" in message(after, "Failed")


def test_the_deadline_counts_earlier_attempts_and_not_the_pauses():
    resource = tried(pretrain_job("zh", activeDeadlineSeconds=600), 1, seconds=500)
    running = job(resource, 2)
    assert step(resource, jobs=[running], now=later(1099))[1].status.phase == "Running"
    assert step(resource, jobs=[running], now=later(1101))[1].status.phase == "Failed"


def test_a_suspended_attempt_does_not_use_up_its_deadline():
    resource = suspended(pretrain_job("zh", activeDeadlineSeconds=600))
    _, after = step(resource, jobs=[job(resource, state="Suspended")], now=later(10**6))
    assert after.status.phase == "Suspended"


def test_suspension_passes_through_saving_to_rest_and_back():
    _, running = step(ZH, jobs=[job(ZH)])
    _, stopping = step(suspended(running), jobs=[job(ZH)])
    assert stopping.status.phase == "Running"
    assert "saves before it stops" in message(stopping, "Suspended")
    planned, resting = step(stopping, jobs=[job(ZH, state="Suspended")])
    assert resting.status.phase == "Suspended"
    assert job_name(planned) == "pj-zh-1"
    planned, woken = step(suspended(resting, suspend=False), jobs=[job(ZH, state="Suspended")])
    assert job_name(planned) == "pj-zh-1"
    assert [child["spec"]["suspend"] for child in planned.children if child["kind"] == "Job"] == [False]
    assert woken.status.phase == "Queued"


def test_no_new_attempt_is_made_while_suspended():
    planned, after = step(suspended(tried(ZH, 1)), now=later(10**5))
    assert planned.children == ()
    assert after.status.phase == "Suspended"


def test_a_job_that_a_queue_holds_back_is_queued():
    resource = pretrain_job("zh", compute={"queueName": "gpus"})
    _, after = step(resource, jobs=[job(resource, state="Suspended")])
    assert after.status.phase == "Queued"
    assert "in the queue gpus" in message(after, "Progressing")


TROUBLES = [
    ("no node fits", {"reason": "Unschedulable", "message": "0/3 nodes"}, "Unschedulable", "Queued"),
    ("the image cannot be pulled", {"reason": "ImagePullBackOff", "message": "401"}, "ImageUnavailable", "Pending"),
    ("a volume cannot be mounted", {"reason": "FailedMount", "message": "busy"}, "VolumeUnavailable", "Pending"),
    ("a quota forbids it", {"reason": "QuotaExceeded", "message": "cpu"}, "QuotaExceeded", "Queued"),
]


@pytest.mark.parametrize(("facts", "reason", "phase"), [row[1:] for row in TROUBLES], ids=[row[0] for row in TROUBLES])
def test_what_keeps_a_pod_from_starting_is_told_and_forgotten(facts, reason, phase):
    _, after = step(ZH, jobs=[job(ZH, state="Pending", pods=(pod("zh-0", **facts),))])
    assert (after.status.phase, after.status.failure.reason) == (phase, reason)
    assert facts["message"] in after.status.failure.message
    assert after.status.failure.hint
    _, after = step(after, jobs=[job(ZH, state="Pending", pods=(pod("zh-0"),))])
    assert (after.status.phase, after.status.failure) == ("Pending", None)


def test_a_jobs_own_trouble_is_told_where_it_has_no_pods():
    _, after = step(ZH, jobs=[job(ZH, state="Pending", reason="FailedCreate", message="exceeded quota: gpus")])
    assert after.status.failure.reason == "QuotaExceeded"
    assert "exceeded quota: gpus" in after.status.failure.message


def test_waiting_for_ones_turn_is_no_failure():
    _, after = step(ZH, jobs=[job(ZH, state="Pending", pods=(pod(reason="Queued", message="waits for 2 cores"),))])
    assert (after.status.phase, after.status.failure) == ("Queued", None)
    assert "waits for 2 cores" in message(after, "Progressing")


def test_the_cause_of_the_last_fault_is_shown_until_the_next_attempt_works():
    crashed = ended(ZH, 1, message="CUDA error")
    _, resource = step(ZH, jobs=[crashed], now=later(500))
    assert "CUDA error" in resource.status.failure.message
    _, resource = step(resource, jobs=[crashed, job(ZH, 2, "Pending")], now=later(600))
    assert "CUDA error" in resource.status.failure.message
    _, resource = step(resource, jobs=[crashed, job(ZH, 2)], now=later(1100))
    assert resource.status.failure is None
    assert "The one before ended: Crashed" in message(resource, "Progressing")


def test_a_run_goes_on_without_an_input_that_was_deleted():
    planned, after = step(ZH, jobs=[job(ZH)], others=())
    assert planned.children == ()
    assert after.status.phase == "Running"
    assert "goes on with what it started with" in message(after, "DependenciesReady")


def test_a_new_attempt_waits_for_an_input_that_was_deleted():
    planned, after = step(tried(ZH, 1), now=later(10**5), others=())
    assert planned.children == ()
    assert after.status.phase == "Waiting"


def test_progress_survives_a_restart_and_is_complete_at_the_end():
    halfway = Progress(percent=50, step=100, total_steps=200, tokens_per_second=9, activity="training")
    _, resource = step(ZH, jobs=[job(ZH, progress=halfway)])
    _, resource = step(resource, jobs=[ended(ZH, 1)], now=later(500))
    assert resource.status.progress == halfway
    _, resource = step(resource, jobs=[done(ZH, 2)], now=later(1500))
    last = resource.status.progress
    assert (last.percent, last.step, last.estimated_remaining_seconds, last.activity) == (100, 200, 0, None)
    assert last.tokens_per_second == 9


def test_checkpoint_and_report_are_passed_on():
    newest = CheckpointStatus(latest="checkpoints/step-00000200", step=200, verified=True, count=2)
    _, resource = step(ZH, jobs=[job(ZH, checkpoint=newest)])
    assert resource.status.checkpoint == newest
    _, resource = step(resource, jobs=[ended(ZH, 1)], now=later(500))
    assert resource.status.checkpoint == newest
