"""Requests that come while no replica answers: held, passed on, refused in time, and counted."""

import asyncio

import aiohttp
import pytest

from activator.stage import error, play
from herdsman.activator.demand import Demand
from herdsman.api_keys import ApiKeys


def test_requests_are_held_until_a_replica_answers_and_none_is_lost():
    async def scene(stage):
        asked = [asyncio.create_task(stage.ask(data=f"request {number}")) for number in range(3)]
        await stage.held(3)
        waiting = await stage.demand()
        await stage.start_replica()
        answers = await asyncio.gather(*asked)
        return answers, waiting, await stage.demand(), stage.seen, await stage.metrics()

    answers, waiting, after, seen, metrics = play(scene)
    assert [(status, body) for status, _, body in answers] == [(200, b"hello")] * 3
    assert {body for *_, body in seen} == {b"request 0", b"request 1", b"request 2"}
    assert waiting == {"requests": 3, "idleSeconds": 0}
    assert (after["requests"], after["idleSeconds"] < 5) == (0, True)
    assert "herdsman_activator_hold_seconds_count 3.0" in metrics
    assert "herdsman_activator_held_requests 0.0" in metrics


def test_one_more_than_may_wait_is_told_when_to_come_back():
    async def scene(stage):
        asked = [asyncio.create_task(stage.ask()) for _ in range(3)]
        await stage.held(3)
        refused = await stage.ask()
        await stage.start_replica()
        return refused, await asyncio.gather(*asked), await stage.metrics()

    (status, headers, body), others, metrics = play(scene)
    assert (status, headers["Retry-After"]) == (429, "5")
    assert (error(body)["type"], error(body)["code"]) == ("rate_limit_error", "too_many_held_requests")
    assert "3 requests wait for a replica already" in error(body)["message"]
    assert headers["x-request-id"].startswith("req-")
    assert [status for status, *_ in others] == [200, 200, 200]
    assert 'herdsman_activator_refused_requests_total{status="429"} 1.0' in metrics


def test_a_request_for_which_no_replica_comes_up_is_told_so_in_time():
    async def scene(stage):
        return await stage.ask(), await stage.demand()

    (status, headers, body), after = play(scene, hold_seconds=0.3)
    assert (status, headers["Retry-After"]) == (503, "30")
    assert (error(body)["type"], error(body)["code"]) == ("server_error", "model_not_ready")
    assert "No replica was ready within 0.3 s" in error(body)["message"]
    assert after["requests"] == 0


def test_a_client_that_leaves_is_held_no_longer():
    async def scene(stage):
        asked = asyncio.create_task(stage.ask())
        await stage.held(1)
        asked.cancel()
        await stage.held(0)
        while (found := await stage.demand())["requests"]:
            pass
        return found

    assert play(scene)["requests"] == 0


def test_a_body_larger_than_what_is_kept_in_memory_arrives_whole_after_the_wait():
    body = bytes(range(256)) * 4096

    async def scene(stage):
        asked = asyncio.create_task(stage.ask(data=body, headers={"Content-Type": "application/json"}))
        await stage.held(1)
        await stage.start_replica()
        await asked
        return stage.seen

    ((_, _, headers, arrived),) = play(scene)
    assert arrived == body
    assert headers["Content-Length"] == str(len(body))


QUIET = {
    "a list of the models": ("GET", "/v1/models", 200),
    "the model": ("GET", "/v1/models/demo", 200),
    "another model": ("GET", "/v1/models/other", 404),
    "a probe": ("GET", "/healthz", 200),
    "a probe for readiness, as requests are taken": ("GET", "/readyz", 200),
}


@pytest.mark.parametrize("what", QUIET)
def test_is_answered_without_waking_anybody(what):
    method, path, expected = QUIET[what]

    async def scene(stage):
        answer = await stage.ask(path, method=method)
        return answer, await stage.demand(), stage.activator._room.waiting

    (status, _, body), after, waiting = play(scene)
    assert (status, waiting) == (expected, 0)
    assert after["requests"] == 0
    if path == "/v1/models":
        assert b'"id": "demo"' in body


def test_what_wakes_nobody_does_not_keep_awake_either():
    seconds = [0.0]

    async def scene(stage):
        stage.activator.demand = Demand(lambda: seconds[0])
        await stage.start_replica()
        await stage.ask()
        seconds[0] = 100.0
        await stage.ask("/v1/models", method="GET")
        return await stage.demand(), [path for _, path, *_ in stage.seen]

    after, paths = play(scene)
    assert after == {"requests": 0, "idleSeconds": 100.0}
    assert paths == ["/v1/chat/completions", "/v1/models"], "an awake replica answers it itself"


@pytest.fixture
def keys(tmp_path):
    (tmp_path / "keys").write_text("secret\n")
    return ApiKeys(file=tmp_path / "keys")


def test_whoever_has_no_key_wakes_nobody(keys):
    async def scene(stage):
        refused = await stage.ask(headers={"Authorization": "Bearer wrong"})
        listed = await stage.ask("/v1/models", method="GET")
        page = await stage.ask("/", method="GET")
        before = await stage.demand()
        asked = asyncio.create_task(stage.ask(headers={"Authorization": "Bearer secret"}))
        await stage.held(1)
        await stage.start_replica()
        return refused, listed, page, before, await asked

    (status, headers, body), listed, page, before, answered = play(scene, keys=keys)
    assert (status, headers["WWW-Authenticate"], error(body)["code"]) == (401, "Bearer", "invalid_api_key")
    assert listed[0] == 401
    assert (page[0], error(page[2])["code"]) == (503, "model_asleep")
    assert before["requests"] == 0
    assert answered[0] == 200


def test_a_web_page_may_ask_first_and_read_refusals():
    origin = {"Origin": "https://app.example.com"}

    async def scene(stage):
        first = await stage.ask(method="OPTIONS", headers={**origin, "Access-Control-Request-Headers": "content-type"})
        refused = await stage.ask(headers=origin)
        other = await stage.ask(headers={"Origin": "https://evil.example.com"})
        return first, refused, other

    first, refused, other = play(scene, hold_seconds=0.2, origins=frozenset(origin.values()))
    assert (first[0], first[1]["Access-Control-Allow-Headers"]) == (200, "content-type")
    assert (refused[0], refused[1]["Access-Control-Allow-Origin"]) == (503, "https://app.example.com")
    assert "Access-Control-Allow-Origin" not in other[1]


def test_one_that_is_about_to_end_goes_on_holding_and_takes_no_more_on_the_same_connection():
    async def scene(stage):
        asked = asyncio.create_task(stage.ask())
        await stage.held(1)
        stage.activator.draining = True
        await stage.start_replica()
        answered = await asked
        return answered, await stage.ask("/v1/models", method="GET")

    for status, headers, _ in play(scene):
        assert (status, headers["Connection"]) == (200, "close")


def test_a_replica_that_goes_before_the_connection_is_asked_for_again(monkeypatch):
    """Ready for the knock, gone for the request: it is held once more, and nothing of it was sent."""
    from herdsman.activator import app

    knocks = []

    async def knock(_host, _port):
        knocks.append(1)
        return True

    monkeypatch.setattr(app, "can_connect", knock)

    async def scene(stage):
        asked = asyncio.create_task(stage.ask(data=b"all of it"))
        while len(knocks) < 3:
            await asyncio.sleep(0.01)
        await stage.start_replica()
        return await asked, stage.seen

    (status, _, _), seen = play(scene)
    assert status == 200
    assert [body for *_, body in seen] == [b"all of it"]


def test_an_answer_that_is_cut_off_is_cut_off_for_the_client_too():
    async def scene(stage):
        async def half(request):
            answer = aiohttp.web.StreamResponse()
            await answer.prepare(request)
            await answer.write(b"half of ")
            request.transport.abort()
            return answer

        stage.answer = half
        await stage.start_replica()
        with pytest.raises(aiohttp.ClientPayloadError):
            await stage.ask()

    play(scene)


def test_a_replica_that_ends_before_it_answers_is_told_as_502():
    async def scene(stage):
        async def nothing(request):
            request.transport.abort()

        stage.answer = nothing
        await stage.start_replica()
        return await stage.ask()

    status, headers, body = play(scene)
    assert (status, headers["Retry-After"], error(body)["code"]) == (502, "1", "replica_lost")
