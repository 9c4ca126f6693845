"""How an attempt ended: exit codes, signals, what the platform says, and which pod of a gang is to blame."""

import pytest

from builders import artifact, done, ended, job, later, pod, pretrain_job, said
from herdsman.core.endings import ending

ZH = pretrain_job("zh")

OUTCOMES = [
    ("bad input", {"exit_code": 42}, "BadInput", False, True),
    (
        "a wrong digest",
        {"exit_code": 42, "termination": said("ChecksumMismatch", "x")},
        "ChecksumMismatch",
        False,
        True,
    ),
    ("a word nobody knows", {"exit_code": 42, "termination": said("Strange", "x")}, "BadInput", False, True),
    ("a loss that is not finite", {"exit_code": 43}, "Diverged", False, True),
    ("stopped after saving", {"exit_code": 75, "termination": said("Interrupted", "x")}, "Interrupted", False, False),
    ("a temporary fault", {"exit_code": 75, "termination": said("Temporary", "x")}, "Temporary", True, False),
    ("a full disk", {"exit_code": 75, "termination": said("DiskFull", "x")}, "DiskFull", True, False),
    ("nothing moved", {"exit_code": 75, "termination": said("Stalled", "x")}, "Stalled", True, False),
    ("75 without a word", {"exit_code": 75}, "Temporary", True, False),
    ("killed by the platform for memory", {"exit_code": 137, "reason": "OOMKilled"}, "OutOfMemory", True, False),
    ("killed by signal 9", {"exit_code": -9}, "OutOfMemory", True, False),
    ("killed by signal 15 before it could save", {"exit_code": 143}, "Killed", False, False),
    ("the same, as Python writes it", {"exit_code": -15}, "Killed", False, False),
    ("evicted and killed after its grace", {"exit_code": 137, "disrupted": True}, "Interrupted", False, False),
    ("evicted before it started", {"reason": "Evicted", "disrupted": True}, "Interrupted", False, False),
    ("the machine went away", {"reason": "Lost"}, "Lost", False, False),
    ("an exception", {"exit_code": 1}, "Crashed", True, False),
    ("a segmentation fault", {"exit_code": 139}, "Crashed", True, False),
    ("bad input found while it was evicted", {"exit_code": 42, "disrupted": True}, "BadInput", False, True),
]


@pytest.mark.parametrize(
    ("facts", "reason", "counted", "permanent"), [row[1:] for row in OUTCOMES], ids=[row[0] for row in OUTCOMES]
)
def test_an_attempt_ends_with(facts, reason, counted, permanent):
    found = ending(job(ZH, state="Failed", pods=(pod("zh-0", phase="Failed", **facts),)))
    assert (found.reason, found.counted, found.permanent) == (reason, counted, permanent)
    assert found.failure.reason == reason
    assert found.failure.message
    assert found.failure.hint
    assert found.failure.pod == "zh-0"


@pytest.mark.parametrize("state", ["Pending", "Running", "Suspended"])
def test_an_attempt_that_lives_has_no_ending(state):
    assert ending(job(ZH, state=state, pods=(pod(exit_code=1, phase="Failed"),))) is None


def test_a_success_hands_on_its_artifact():
    found = ending(done(ZH))
    assert (found.reason, found.counted, found.exit_code, found.failure) == ("Succeeded", False, 0, None)
    assert found.artifact == artifact(ZH)


def test_any_rank_may_have_told_the_artifact():
    told = pod("zh-1", index=1, exit_code=0, termination=said("Succeeded", artifact=artifact(ZH)))
    assert ending(job(ZH, state="Complete", pods=(told, pod("zh-0", exit_code=0)))).artifact == artifact(ZH)


def test_a_success_without_an_artifact_is_tried_again():
    found = ending(ended(ZH, 0))
    assert (found.reason, found.counted, found.permanent) == ("Crashed", True, False)
    assert "names no artifact" in found.failure.message


FIRST, SECOND = later(10), later(20)
GANGS = [
    (
        "bad input beats everything",
        [pod("a", exit_code=1, ended=FIRST), pod("b", exit_code=42, ended=SECOND)],
        ("b", "BadInput"),
    ),
    (
        "an eviction beats the crashes it causes",
        [pod("a", exit_code=1, ended=FIRST), pod("b", exit_code=143, disrupted=True, ended=SECOND)],
        ("b", "Interrupted"),
    ),
    (
        "a lost machine beats the crashes it causes",
        [pod("a", exit_code=1, ended=FIRST), pod("b", phase="Failed", reason="Lost")],
        ("b", "Lost"),
    ),
    (
        "want of memory beats the crashes it causes",
        [pod("a", exit_code=1, ended=FIRST), pod("b", exit_code=137, reason="OOMKilled", ended=SECOND)],
        ("b", "OutOfMemory"),
    ),
    (
        "a pod that stood still beats the crashes of those who waited for it",
        [
            pod("a", exit_code=1, ended=FIRST),
            pod("b", exit_code=75, termination=said("Stalled", "x"), ended=SECOND),
        ],
        ("b", "Stalled"),
    ),
    (
        "the first crash beats those who were stopped for it",
        [
            pod("a", exit_code=75, termination=said("Interrupted", "x"), ended=SECOND),
            pod("b", exit_code=1, ended=FIRST),
        ],
        ("b", "Crashed"),
    ),
    (
        "in the same second the crash is the cause",
        [
            pod("a", exit_code=75, termination=said("Interrupted", "x"), ended=FIRST),
            pod("b", exit_code=1, ended=FIRST),
        ],
        ("b", "Crashed"),
    ),
    (
        "pods that ended well are not to blame",
        [pod("a", exit_code=0, ended=FIRST), pod("b", exit_code=1, ended=SECOND)],
        ("b", "Crashed"),
    ),
]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("pods", "blamed"), [row[1:] for row in GANGS], ids=[row[0] for row in GANGS])
def test_in_a_gang(pods, blamed, mirrored):
    order = tuple(reversed(pods)) if mirrored else tuple(pods)
    found = ending(job(ZH, state="Failed", pods=order))
    assert (found.failure.pod, found.reason) == blamed


def test_a_job_whose_pods_are_gone_counts_and_says_so():
    found = ending(job(ZH, state="Failed", reason="BackoffLimitExceeded", message="it failed"))
    assert (found.reason, found.counted) == ("Lost", True)
    assert "its pods are gone" in found.failure.message
    assert "BackoffLimitExceeded it failed" in found.failure.message


def test_a_job_that_the_platform_ended_at_its_deadline_has_failed_for_good():
    found = ending(job(ZH, state="Failed", reason="DeadlineExceeded"))
    assert (found.reason, found.permanent) == ("DeadlineExceeded", True)


def test_the_place_in_the_input_is_told_once():
    words = said("BadInput", "not a JSON object", file="zh/data.jsonl", line=7, hint="Correct the line.")
    found = ending(ended(ZH, 42, termination=words))
    assert found.failure.message == "zh/data.jsonl, line 7: not a JSON object"
    assert found.failure.hint == "Correct the line."
    named = said("BadInput", "zh/data.jsonl line 7 is not a JSON object", file="zh/data.jsonl", line=7)
    assert ending(ended(ZH, 42, termination=named)).failure.message == named.message


def test_what_the_platform_says_is_passed_on():
    found = ending(ended(ZH, 139, reason="Error", message="core dumped"))
    assert "exit code 139 (signal 11)" in found.failure.message
    assert "Error core dumped" in found.failure.message


def test_a_long_message_fits_the_status():
    found = ending(ended(ZH, 42, termination=said("BadInput", "x" * 3000, hint="y" * 3000)))
    assert len(found.failure.message) == 2048
    assert len(found.failure.hint) == 1024
