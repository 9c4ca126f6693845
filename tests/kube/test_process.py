"""The command line, the log and kopf's part: what can be told without a cluster."""

import asyncio
import json
import logging
import sys

import kopf
import pytest
from kopf._core.reactor import orchestration, processing

from herdsman.api.v1alpha1.registry import KINDS
from herdsman.core.site import Site
from herdsman.kube.__main__ import make_parser, site_of
from herdsman.kube.handlers import hand_on, make_registry, make_settings, straight_on
from herdsman.kube.logs import JsonFormatter
from kube.objects import job
from kube.station import Station


def test_a_scope_must_be_chosen_and_only_one(capsys):
    for wrong in ([], ["--namespace", "a", "--all-namespaces"], ["--namespace", "a", "--lease", "x"]):
        with pytest.raises(SystemExit) as error:
            make_parser().parse_args(wrong)
        assert error.value.code == 2
    assert "'x' is not NAMESPACE/NAME" in capsys.readouterr().err


def test_several_namespaces_and_a_lease():
    given = make_parser().parse_args(["--namespace", "a", "--namespace", "b", "--lease", "a/herdsman"])
    assert (given.namespace, given.lease) == (["a", "b"], ("a", "herdsman"))


def test_what_the_command_line_says_of_pods_is_what_the_site_knows(capsys):
    nothing = site_of(make_parser().parse_args(["--all-namespaces"]))
    assert nothing == Site()
    secrets = ["--image-pull-secret", "b", "--image-pull-secret", "a", "--image-pull-secret", "b"]
    hub = ["--hub-endpoint", "https://hub.example.com", "--image-pull-policy", "Never"]
    site = site_of(make_parser().parse_args(["--all-namespaces", *secrets, *hub, "--server-image", "x"]))
    assert (site.image_pull_secrets, site.image_pull_policy) == (("b", "a"), "Never")
    assert (site.hub_endpoint, site.server_image) == ("https://hub.example.com", "x")
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--all-namespaces", "--hub-endpoint", "hub.example.com"])
    assert "is not an URL such as" in capsys.readouterr().err


def test_kopf_watches_every_kind_and_labelled_children_and_writes_nothing():
    station = Station()
    station.start()
    registry, settings = make_registry(station.shell.intake), make_settings()
    watched = {handler.id for handler in registry._watching.get_all_handlers()}
    assert watched == {*(info.plural for info in KINDS.values()), "jobs", "pods", "deployments"}
    writing = (registry._changing, registry._spawning, registry._indexing, registry._webhooks)
    assert [list(kind.get_all_handlers()) for kind in writing] == [[], [], [], []]
    labels = list(settings.watching.label_selectors.values())
    assert labels == ["app.kubernetes.io/managed-by=herdsman"] * 3
    assert settings.scanning.disabled
    assert settings.peering.standalone
    assert not settings.posting.enabled
    assert sum(settings.networking.error_backoffs) > 600
    assert isinstance(registry, kopf.OperatorRegistry)


def test_a_watch_event_reaches_the_cache_and_the_queue():
    async def story():
        station = Station()
        station.start()
        await hand_on(station.shell.intake, "Job")(event={"type": "ADDED", "object": job()}, body=None)
        return station.shell.cache.get("Job", "team", "pj-zh-1"), station.shell.queue.depth

    there, depth = asyncio.run(story())
    assert there is not None
    assert depth == 1


def test_a_kopf_that_is_started_within_gives_its_events_straight_to_the_intake(monkeypatch):
    """kopf hands its function for one event to what starts the watches; whatever it is there is called with events."""
    given = {}

    async def orchestrator(*, processor, **_):
        given["processor"] = processor

    monkeypatch.setattr(orchestration, "orchestrator", orchestrator)

    async def story():
        station = Station()
        station.start()
        registry, settings, stop = make_registry(station.shell.intake), make_settings(), asyncio.Event()
        with straight_on(station.shell.intake):
            options = {"standalone": True, "namespaces": ["team"], "stop_flag": stop}
            tasks = await kopf.spawn_tasks(registry=registry, settings=settings, **options)
        while not given:
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        jobs = kopf.Resource("batch", "v1", "jobs", kind="Job")
        processor = given["processor"]
        await processor(resource=jobs, raw_event={"type": "ADDED", "object": job()}, stream_pressure=asyncio.Event())
        await processor(resource=jobs, raw_event={"type": "ADDED", "object": {}}, stream_pressure=asyncio.Event())
        return processor, station.shell.cache.get("Job", "team", "pj-zh-1")

    own = processing.process_resource_event
    processor, there = asyncio.run(story())
    assert processor.func is not own
    assert there is not None, "and what cannot be taken in stops nothing"
    assert processing.process_resource_event is own, "others have kopf as it is"


def test_a_log_line_is_one_json_object_with_its_traceback():
    try:
        raise ValueError("broken")
    except ValueError:
        record = logging.LogRecord("herdsman", logging.ERROR, "", 1, "%s: a bug", ("x",), sys.exc_info())
    entry = json.loads(JsonFormatter().format(record))
    assert (entry["level"], entry["logger"], entry["message"]) == ("error", "herdsman", "x: a bug")
    assert "ValueError: broken" in entry["error"]
