"""Which changes of a status become Kubernetes Events, and how they are posted."""

from datetime import UTC, datetime

import pytest

import builders
from herdsman.api.meta import Condition
from herdsman.api.v1alpha1.status import Status
from herdsman.kube.announcements import Announcement, announcements
from herdsman.kube.errors import Unreachable
from herdsman.kube.recorder import Recorder
from kube.fake_api import FakeApi
from kube.station import run


def having(**conditions):
    made = [
        Condition(
            type=kind,
            status=status,
            reason=reason,
            message=f"{reason}.",
            observed_generation=1,
            last_transition_time=builders.NOW,
        )
        for kind, (status, reason) in conditions.items()
    ]
    return Status(conditions=made)


STARTING, RUNNING = ("True", "Starting"), ("True", "Running")
CASES = {
    "a first healthy status is silent": (None, having(Accepted=("True", "Accepted"), Progressing=STARTING), []),
    "refused from the start": (
        None,
        having(Accepted=("False", "InvalidSpec")),
        [("Warning", "InvalidSpec")],
    ),
    "a plain start is silent": (having(Progressing=STARTING), having(Progressing=RUNNING), []),
    "it works again": (
        having(Progressing=("False", "Unschedulable")),
        having(Progressing=RUNNING),
        [("Normal", "Running")],
    ),
    "it goes on": (having(Progressing=("False", "Suspended")), having(Progressing=RUNNING), [("Normal", "Running")]),
    "it works on": (having(Progressing=RUNNING), having(Progressing=RUNNING), []),
    "no node fits": (
        having(Progressing=STARTING),
        having(Progressing=("False", "Unschedulable")),
        [("Warning", "Unschedulable")],
    ),
    "the next attempt": (
        having(Progressing=RUNNING),
        having(Progressing=("False", "Restarting")),
        [("Warning", "Restarting")],
    ),
    "stopped": (having(Progressing=RUNNING), having(Progressing=("False", "Suspended")), [("Normal", "Suspended")]),
    "succeeded": (
        having(Complete=("False", "Pending"), Failed=("False", "NotFailed")),
        having(Complete=("True", "Succeeded"), Failed=("False", "NotFailed")),
        [("Normal", "Succeeded")],
    ),
    "failed": (
        having(Complete=("False", "Pending"), Failed=("False", "NotFailed")),
        having(Complete=("False", "BadInput"), Failed=("True", "BadInput")),
        [("Warning", "BadInput")],
    ),
    "waiting for another run is silent": (None, having(DependenciesReady=("False", "ReferenceNotReady")), []),
    "what it waited for has failed": (
        having(DependenciesReady=("False", "ReferenceNotReady")),
        having(DependenciesReady=("False", "ReferenceFailed")),
        [("Warning", "ReferenceFailed")],
    ),
    "what it waited for is there": (
        having(DependenciesReady=("False", "ReferenceNotReady")),
        having(DependenciesReady=("True", "DependenciesReady")),
        [("Normal", "DependenciesReady")],
    ),
    "a server answers": (having(Ready=("False", "NotReady")), having(Ready=("True", "Ready")), [("Normal", "Ready")]),
    "a server answers no more": (
        having(Ready=("True", "Ready")),
        having(Ready=("False", "NotReady")),
        [("Warning", "NotReady")],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_announced(name):
    before, after, expected = CASES[name]
    found = announcements(before, after)
    assert [(item.severity, item.reason) for item in found] == expected
    assert all(item.message for item in found)


BODY = {
    "kind": "SFTJob",
    "metadata": {"name": "tuned", "namespace": "team", "uid": "u-1", "resourceVersion": "5"},
}
HELLO = Announcement("Normal", "Running", "Attempt 1 works.")


def posted(*said, seconds=(0, 0, 0), api=None):
    async def story():
        clock = iter(seconds)
        recorder = Recorder(api or FakeApi(), clock=lambda: next(clock))
        for item in said:
            recorder.announce(BODY, item)
        await recorder.drain()
        return recorder

    return run(story)


def test_an_event_names_its_object_and_who_says_it():
    api = FakeApi()
    posted(HELLO, api=api)
    (event,) = api.of("Event")
    assert (event["involvedObject"]["kind"], event["involvedObject"]["uid"]) == ("SFTJob", "u-1")
    assert (event["type"], event["reason"], event["source"]) == ("Normal", "Running", {"component": "herdsman"})
    assert datetime.fromisoformat(event["lastTimestamp"]).tzinfo == UTC


def test_the_same_words_are_posted_once_in_ten_minutes():
    api = FakeApi()
    posted(HELLO, HELLO, api=api)
    assert len(api.writes) == 1


def test_after_ten_minutes_they_are_news_again():
    api = FakeApi()
    posted(HELLO, HELLO, seconds=(0, 601), api=api)
    assert len(api.writes) == 2


def test_an_event_that_cannot_be_posted_is_counted_and_forgotten():
    api = FakeApi()

    def fail(_call):
        raise Unreachable("away")

    api.before = fail
    assert posted(HELLO, api=api).dropped == 1


def test_an_operator_that_was_killed_right_after_posting_does_not_post_again():
    api = FakeApi()
    posted(HELLO, api=api)
    assert posted(HELLO, api=api).dropped == 0
    assert len(api.of("Event")) == 1
