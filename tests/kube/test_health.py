"""Signs of life, and what is served about them."""

import asyncio
import json
import re
import socket
import time

import aiohttp

import builders
from herdsman.kube import metrics
from herdsman.kube.health import Health, make_app, serve
from herdsman.kube.listing import CHILDREN, OURS
from herdsman.kube.metrics import ShellCollector
from herdsman.kube.pulse import LoopPulse, WatchPulse
from kube.fake_platform import run_on
from kube.station import Station, run


def imported():
    return builders.model_import("base", workspace={"claim": "weights", "path": "base"})


async def working():
    station = Station(run_on)
    station.claims("weights")
    station.put(imported())
    station.start()
    await station.operator.list_until_done()
    await station.settle()
    return station


def test_watches_that_bring_what_is_written_are_alive():
    async def story():
        station = await working()
        pulse = WatchPulse(station.shell.intake, {*OURS, *CHILDREN}, lambda: station.seconds)
        found = [pulse.silent()]
        station.seconds += 1000
        return [*found, pulse.silent()]

    assert run(story) == [[], []]


def test_a_watch_that_does_not_bring_our_own_writes_is_silent_after_five_minutes():
    async def story():
        station = Station(run_on)
        station.claims("weights")
        station.start()
        station.put(imported())
        await station.operator.list_until_done()
        pulse = WatchPulse(station.shell.intake, {*OURS, *CHILDREN}, lambda: station.seconds)
        await station.work(hold={"Job"})
        found = [pulse.silent()]
        for _ in range(2):
            station.seconds += 200
            found.append(pulse.silent())
        station.deliver()
        return [*found, pulse.silent()]

    early, later, late, again = run(story)
    assert (early, later, again) == ([], [], [])
    assert late == ["the watch of Job in team has been silent for 400 s"]


def test_a_loop_that_was_stuck_is_told():
    async def story():
        loop = LoopPulse()
        ticking = asyncio.create_task(loop.run())
        await asyncio.sleep(0)
        begun = time.perf_counter()
        while time.perf_counter() - begun < 1.2:
            pass
        await asyncio.sleep(0.01)
        ticking.cancel()
        return loop.lag

    assert run(story) > 0.1


def served(story_of):
    async def story():
        station = await working()
        loop = LoopPulse()
        watches = WatchPulse(station.shell.intake, {*OURS, *CHILDREN}, lambda: station.seconds)
        health = Health(loop, watches, station.operator.readiness)
        registry = station.metrics.registry
        registry.register(ShellCollector(station.shell, health.figures))
        port, stop = await _listening(make_app(health, registry))
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:

            async def get(path):
                async with http.get(path) as answer:
                    return answer.status, await answer.text()

            try:
                return await story_of(station, loop, get)
            finally:
                await stop()

    return asyncio.run(story())


async def _listening(app):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return port, await serve(app, port, "127.0.0.1")


def test_livez_fails_while_the_loop_is_stuck():
    async def story(_station, loop, get):
        well = await get("/livez")
        loop._late.append(45.0)
        return well, await get("/livez")

    well, ill = served(story)
    assert well == (200, "ok\n")
    assert ill == (503, "the event loop was 45 s late\n")


def test_readyz_says_what_is_missing():
    async def story(station, _loop, get):
        ready = await get("/readyz")
        station.operator.readiness.listed = False
        station.operator.readiness.problem = "a CustomResourceDefinition is missing"
        return ready, await get("/readyz")

    ready, missing = served(story)
    assert (ready, missing) == ((200, "ok\n"), (503, "a CustomResourceDefinition is missing\n"))


def test_a_replica_that_stands_by_is_ready_until_it_takes_over():
    async def story(station, _loop, get):
        readiness = station.operator.readiness
        readiness.listed, readiness.problem = False, "the first listing is under way"
        found = []
        for change in (lambda: None, readiness.stand_by, readiness.take_over):
            change()
            found.append((await get("/readyz"))[0])
        return found

    assert served(story) == [503, 200, 503]


def test_every_documented_metric_is_served_and_every_served_one_is_documented():
    async def story(station, _loop, get):
        uid = station.api.of("Job")[0]["metadata"]["uid"]
        figures = [
            {"name": "loss", "value": "2.5"},
            {"name": "learning_rate", "value": "0.0001"},
            {"name": "gpu_memory_bytes", "value": "1000"},
            {"name": "checkpoint_timestamp_seconds", "value": "1000"},
        ]
        document = {"step": 4, "percent": 40, "tokensPerSecond": 9, "estimatedRemainingSeconds": 6, "metrics": figures}
        station.progress[uid] = json.dumps(document).encode()
        await station.operator.poll()
        station.put(builders.model_server("chat", model={"volume": {"claim": "weights"}}))
        await station.settle()
        station.metrics.count_request("GET", "Job", 200)
        return (await get("/metrics"))[1]

    text = served(story)
    there = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    there = {name for name in there if not name.endswith("_created")}
    documented = set(re.findall(r"^\| (herdsman_\S+)", metrics.__doc__, re.MULTILINE))
    assert there == documented
    assert 'herdsman_resource_phase{kind="ModelImport",name="base",namespace="team",phase="Running"} 1.0' in text
    assert 'herdsman_run_loss{kind="ModelImport",name="base",namespace="team"} 2.5' in text
    assert 'herdsman_run_progress_ratio{kind="ModelImport",name="base",namespace="team"} 0.4' in text
