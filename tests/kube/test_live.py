"""Asking running trainers for their progress."""

import asyncio
import json

import pytest
from aiohttp import web

import builders
from herdsman.core.world import Key
from herdsman.kube.cache import ResourceKey
from herdsman.kube.live import HttpFetch, LiveReports, Target, read_report
from kube.fake_platform import run_on
from kube.station import Station, run

ZH = ResourceKey("team", Key("PretrainJob", "zh"))
TARGET = Target("uid-1", ZH, "10.0.0.1", 9400)


class Trainer:
    def __init__(self):
        self.seconds, self.step, self.asked = 0.0, 0, 0
        self.reports = LiveReports(self.answer, lambda: self.seconds)

    async def answer(self, _target):
        self.asked += 1
        if self.step < 0:
            raise OSError("connection refused")
        return json.dumps({"step": self.step, "percent": 1}).encode()

    async def poll(self, step, seconds):
        self.step, self.seconds = step, seconds
        return await self.reports.poll([TARGET])

    def shown(self):
        report = self.reports.shown("uid-1")
        return report.progress.step if report else None


def test_the_first_answer_is_shown_at_once_and_then_one_in_ten_seconds():
    async def story():
        trainer = Trainer()
        found = []
        for step, seconds in ((1, 0), (2, 5), (3, 10), (4, 15)):
            woken = await trainer.poll(step, seconds)
            found.append((bool(woken), trainer.shown()))
        return found, trainer.reports.newest("uid-1").progress.step

    assert run(story) == ([(True, 1), (False, 1), (True, 3), (False, 3)], 4)


def test_nothing_new_wakes_nobody():
    async def story():
        trainer = Trainer()
        return [bool(await trainer.poll(7, seconds)) for seconds in (0, 20, 40)]

    assert run(story) == [True, False, False]


def test_of_a_finished_job_the_very_last_answer_counts():
    async def story():
        trainer = Trainer()
        await trainer.poll(1, 0)
        await trainer.poll(2, 5)
        return trainer.reports.shown("uid-1", final=True).progress.step

    assert run(story) == 2


def test_who_does_not_answer_is_asked_less_and_less_often():
    async def story():
        trainer = Trainer()
        for seconds in range(0, 300, 5):
            await trainer.poll(-1, seconds)
        return trainer.asked, trainer.shown()

    asked, shown = run(story)
    assert (asked < 12, shown) == (True, None)


def test_what_is_gone_is_dropped():
    async def story():
        trainer = Trainer()
        await trainer.poll(1, 0)
        trainer.reports.keep({"uid-2"})
        return trainer.shown()

    assert run(story) is None


def test_the_checkpoint_comes_along_and_unknown_members_do_no_harm():
    document = {"step": 5, "mood": "good", "checkpoint": {"latest": "checkpoints/step-5", "step": 5, "verified": True}}
    report = read_report(json.dumps(document).encode())
    assert (report.progress.step, report.checkpoint.step) == (5, 5)


def test_a_server_tells_of_its_adapters():
    document = {"adapters": [{"name": "law", "loaded": True, "message": None}, {"name": "med", "message": "no r"}]}
    found = read_report(json.dumps(document).encode()).adapters
    assert [(each.name, each.loaded, each.message) for each in found] == [("law", True, None), ("med", False, "no r")]


@pytest.mark.parametrize("data", [b"", b'{"adapters": 3}', b"[]", b"<html>", b'{"step": "x"}', b'{"checkpoint": 3}'])
def test_anything_else_is_no_report(data):
    with pytest.raises(ValueError):
        read_report(data)


def test_a_real_trainer_is_asked_over_http_and_a_wrong_answer_is_an_error():
    async def story():
        async def progress(_request):
            return web.json_response({"step": 3, "percent": 30})

        app = web.Application()
        app.add_routes([web.get("/progress", progress)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        fetch = HttpFetch()
        reports = LiveReports(fetch)
        try:
            await reports.poll([Target("a", ZH, "127.0.0.1", port), Target("b", ZH, "127.0.0.1", 1)])
            return reports.shown("a"), reports.shown("b")
        finally:
            await fetch.close()
            await runner.cleanup()

    answered, silent = asyncio.run(story())
    assert (answered.progress.step, silent) == (3, None)


def test_progress_reaches_the_status_at_most_every_ten_seconds():
    resource = builders.model_import("base", workspace={"claim": "weights", "path": "base"})

    async def story():
        station = Station(run_on)
        station.claims("weights")
        station.put(resource)
        station.start()
        await station.operator.list_until_done()
        await station.settle()
        uid = station.api.of("Job")[0]["metadata"]["uid"]
        before = len(station.api.writes)
        for second in range(60):
            station.progress[uid] = json.dumps({"step": second, "percent": second}).encode()
            if second % 5 == 0:
                await station.operator.poll()
            await station.work()
            station.seconds += 1
        return station, len(station.api.writes) - before

    station, writes = run(story)
    assert station.status(resource)["progress"]["step"] == 50
    assert writes == 6
