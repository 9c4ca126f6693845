"""Two replicas and one Lease."""

import asyncio

import pytest

from herdsman.kube.errors import Unreachable
from herdsman.kube.lease import Lease, Lost
from kube.fake_api import FakeApi
from kube.station import run


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def replicas():
    api, clock = FakeApi(), Clock()
    return api, clock, *(Lease(api, "herdsman", "operator", name, clock) for name in ("one", "other"))


def holder(api):
    return api.of("Lease")[0]["spec"]["holderIdentity"]


def test_the_first_one_holds_it_and_the_other_waits():
    async def story():
        api, _, one, other = replicas()
        return await one._try(), await other._try(), holder(api)

    assert run(story) == (True, False, "one")


def test_it_passes_on_when_it_has_not_been_renewed_for_fifteen_seconds_of_the_others_clock():
    async def story():
        api, clock, one, other = replicas()
        await one._try()
        found = []
        for seconds in (0, 14, 16):
            clock.now = seconds
            found.append(await other._try())
        return found, holder(api), await one._try()

    assert run(story) == ([False, False, True], "other", False)


def test_only_one_that_knows_of_a_holder_says_that_it_stands_by(monkeypatch):
    monkeypatch.setattr("herdsman.kube.lease.RETRY_SECONDS", 0.0)

    async def story():
        api, clock, one, other = replicas()
        await one._try()
        said = []
        api.before = lambda call: (_ for _ in ()).throw(Unreachable("away"))

        def passing():
            said.append(clock.now)
            clock.now += 10

        waiting = asyncio.create_task(other.acquire(passing))
        await asyncio.sleep(0.01)
        found = [list(said)]
        api.before = lambda call: None
        await asyncio.wait_for(waiting, 5)
        return [*found, said, holder(api)]

    assert run(story) == [[], [0.0, 10.0], "other"]


def test_a_renewal_keeps_the_other_waiting():
    async def story():
        _, clock, one, other = replicas()
        await one._try()
        found = []
        for seconds in range(0, 60, 5):
            clock.now = seconds
            await asyncio.sleep(0.001)  # renewTime has microseconds of the real clock
            assert await one._try()
            found.append(await other._try())
        return found

    assert not any(run(story))


def test_one_that_was_released_is_taken_at_once():
    async def story():
        api, _, one, other = replicas()
        await one._try()
        await one.release()
        return await other._try(), holder(api)

    assert run(story) == (True, "other")


def test_two_that_take_it_at_once_do_not_both_get_it():
    async def story():
        api, clock, one, other = replicas()
        await one._try()
        third = Lease(api, "herdsman", "operator", "third", clock)
        for lease in (other, third):
            await lease._try()
        clock.now = 20
        stale = await api.get("Lease", "herdsman", "operator")
        assert await other._try()
        get = api.get

        async def read_before(*_):
            return stale

        api.get = read_before
        found = await third._try()
        api.get = get
        return found, holder(api)

    assert run(story) == (False, "other")


def test_who_cannot_renew_gives_up_before_another_may_take_over(monkeypatch):
    async def story():
        api, clock, one, _ = replicas()
        await one._try()

        def fail(_call):
            raise Unreachable("away")

        async def sleep(seconds):
            clock.now += seconds

        api.before = fail
        monkeypatch.setattr(asyncio, "sleep", sleep)
        with pytest.raises(Lost):
            await one.keep()
        return clock.now

    assert 10 < run(story) < 15
