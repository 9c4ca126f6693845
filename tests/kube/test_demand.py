"""What activators say: who is asked, what is understood, and which answers are news."""

import asyncio
import json

import pytest

from herdsman.kube.demand import Demands, read_demand, target_of
from herdsman.kube.live import Target
from kube.test_server_asleep import activator_pod

WRONG = [
    b"",
    b"[]",
    b"null",
    b'{"requests": "1", "idleSeconds": 0}',
    b'{"requests": -1, "idleSeconds": 0}',
    b'{"requests": 1}',
]


@pytest.mark.parametrize("said", WRONG)
def test_nonsense_is_no_demand(said):
    with pytest.raises(ValueError):
        read_demand(said)


TARGETS = {
    "one that runs": (activator_pod(), True),
    "one that waits for a node": (activator_pod(phase="Pending", podIP=None), False),
    "one that has ended": (activator_pod(phase="Succeeded"), False),
}


@pytest.mark.parametrize("what", TARGETS)
def test_who_is_asked(what):
    pod, asked = TARGETS[what]
    pod = {**pod, "metadata": {**pod["metadata"], "uid": "u"}}
    target = target_of(pod)
    assert (target is not None) is asked
    if target is not None:
        assert target == Target("u", target.parent, "10.0.0.9", 9400, "/demand")


def test_only_news_wakes_anybody():
    said = {"requests": 0, "idleSeconds": 1.0}

    async def fetch(_target):
        return json.dumps(said).encode()

    async def story():
        pod = activator_pod()
        pods = [{**pod, "metadata": {**pod["metadata"], "uid": "u"}}]
        demands, heard = Demands(fetch), []
        for requests in (0, 0, 1, 2, 0):
            said["requests"] = requests
            heard.append(len(await demands.poll(pods)))
        demands.keep(())
        return heard, demands.of(pods)

    assert asyncio.run(story()) == ([1, 0, 1, 0, 1], None)
