"""Which Jobs start when, and with what."""

import pytest

from herdsman.local.machine import Machine
from herdsman.local.pod_template import cores, expand
from herdsman.local.scheduler import Grant, Request, choose, shortage


def asks(job, cores=1.0, gpus=0):
    return Request(job, cores, gpus)


CASES = {
    "a single Job gets all cores": (8, [asks("a")], [], [("a", 8)]),
    "two Jobs share what nobody asked for": (8, [asks("a"), asks("b", 3)], [], [("a", 3), ("b", 5)]),
    "cores are shared in whole numbers": (3, [asks("a"), asks("b")], [], [("a", 1), ("b", 1)]),
    "what does not fit waits": (2, [asks("a"), asks("b"), asks("c")], [], [("a", 1), ("b", 1)]),
    "nobody overtakes": (4, [asks("a", 3), asks("b", 2), asks("c", 1)], [], [("a", 4)]),
    "a Job beside a running one gets what is left": (4, [asks("a")], [asks("r", 2)], [("a", 2)]),
    "nothing starts while all cores are taken": (2, [asks("a")], [asks("r", 2)], []),
    "too many cores run alone": (2, [asks("a", 16), asks("b")], [], [("a", 2)]),
    "too many cores wait for the others": (2, [asks("a", 16)], [asks("r")], []),
    "half a core is enough for two on one": (1, [asks("a", 0.5), asks("b", 0.5)], [], [("a", 1), ("b", 1)]),
    "nothing waits": (2, [], [], []),
}


@pytest.mark.parametrize(("total", "waiting", "running", "expected"), CASES.values(), ids=CASES)
def test_choosing(total, waiting, running, expected):
    grants = choose(waiting, running, frozenset(), Machine(total))
    assert [(grant.job, grant.cores) for grant in grants] == expected


def test_gpus_are_given_out_once():
    waiting = [asks("a", gpus=2), asks("b", gpus=1), asks("c", gpus=2)]
    grants = choose(waiting, [], frozenset({1}), Machine(16, 4))
    assert grants == [Grant("a", 8, (0, 2)), Grant("b", 8, (3,))]


def test_a_job_with_more_gpus_than_there_are_holds_nobody_up():
    assert [grant.job for grant in choose([asks("a", gpus=8), asks("b")], [], frozenset(), Machine(2))] == ["b"]


@pytest.mark.parametrize(
    ("gpus", "has", "told"),
    [(0, 0, None), (2, 2, None), (1, 0, "asks for 1 GPU and this machine has no GPU"), (4, 1, "has 1 GPU;")],
)
def test_a_shortage_of_gpus_is_told(gpus, has, told):
    sentence = shortage(asks("a", gpus=gpus), Machine(4, has))
    assert sentence is None if told is None else told in sentence


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)/x", "1/x"),
        ("$$(A)", "$(A)"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("/price/$$5", "/price/$5"),
        ("$A", "$A"),
    ],
)
def test_references_expand_as_in_kubernetes(text, expanded):
    assert expand(text, {"A": "1"}) == expanded


@pytest.mark.parametrize(("quantity", "value"), [("4", 4.0), ("500m", 0.5), ("1.5", 1.5)])
def test_quantities_of_cores(quantity, value):
    assert cores(quantity) == value
