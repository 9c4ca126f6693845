"""Requests to an API server, answered by a stub over HTTP."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from kubernetes.aio import client

from herdsman.kube.api import KubeApi, TokenBucket, path_of
from herdsman.kube.errors import ApiError, Conflict, NotFound, Unreachable
from kube.station import run


@asynccontextmanager
async def stub(answer):
    """A server that gives every request to `answer`, and a connection to it."""
    seen, counted = [], []

    async def handle(request):
        body = await request.text()
        seen.append((request.method, request.path, dict(request.query), dict(request.headers), body))
        return answer(request)

    app = web.Application()
    app.add_routes([web.route("*", "/{path:.*}", handle)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = client.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    configuration.api_key = {"authorization": "Bearer secret"}
    api = KubeApi(client.ApiClient(configuration), count=lambda *call: counted.append(call))
    try:
        yield api, seen, counted
    finally:
        await api.close()
        await runner.cleanup()


def asked(request_of, answer=lambda _: web.json_response({})):
    async def story():
        async with stub(answer) as (api, seen, counted):
            result = await request_of(api)
            return result, seen, counted

    return run(story)


def refused(status, body=None, headers=None):
    async def story():
        def answer(_request):
            return web.json_response(body or {}, status=status, headers=headers)

        async with stub(answer) as (api, _, counted):
            with pytest.raises(ApiError) as error:
                await api.get("Job", "team", "x")
            return error.value, counted

    return run(story)


def test_server_side_apply_names_its_manager_and_takes_conflicts():
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x", "namespace": "team"}}
    _, ((method, path, query, headers, sent),), counted = asked(lambda api: api.apply(body))
    assert (method, path) == ("PATCH", "/api/v1/namespaces/team/services/x")
    assert query == {"fieldManager": "herdsman", "force": "true"}
    assert headers["Content-Type"] == "application/apply-patch+yaml"
    assert headers["Authorization"] == "Bearer secret"
    assert json.loads(sent) == body
    assert counted == [("PATCH", "Service", 200)]


def test_a_status_goes_to_its_subresource():
    body = {"apiVersion": "herdsman.dev/v1alpha1", "kind": "SFTJob", "metadata": {"name": "x", "namespace": "team"}}
    _, seen, _ = asked(lambda api: api.apply(body, subresource="status"))
    assert seen[0][1] == "/apis/herdsman.dev/v1alpha1/namespaces/team/sftjobs/x/status"


def test_a_deletion_is_guarded_by_the_uid_and_takes_children_along():
    _, seen, _ = asked(lambda api: api.delete("Job", "team", "x", uid="u-1"))
    assert json.loads(seen[0][4]) == {"propagationPolicy": "Background", "preconditions": {"uid": "u-1"}}


def test_a_merge_patch_says_so():
    _, seen, _ = asked(lambda api: api.merge("Job", "team", "x", {"spec": {"suspend": True}}))
    assert seen[0][3]["Content-Type"] == "application/merge-patch+json"


def test_a_long_list_comes_in_pages_of_one_version():
    pages = {
        "": {"metadata": {"resourceVersion": "70", "continue": "more"}, "items": [{"metadata": {"name": "a"}}]},
        "more": {"metadata": {"resourceVersion": "70"}, "items": [{"metadata": {"name": "b"}}]},
    }

    def answer(request):
        return web.json_response(pages[request.query.get("continue", "")])

    listing, seen, _ = asked(lambda api: api.list_objects("Pod", None, labelSelector="a=b"), answer)
    assert [item["metadata"]["name"] for item in listing.items] == ["a", "b"]
    assert {item["kind"] for item in listing.items} == {"Pod"}
    assert listing.version == 70
    assert [query.get("labelSelector") for _, _, query, _, _ in seen] == ["a=b", "a=b"]


ERRORS = {
    404: NotFound,
    409: Conflict,
    403: ApiError,
    422: ApiError,
    429: ApiError,
    500: ApiError,
}


@pytest.mark.parametrize("status", ERRORS)
def test_a_refusal_is_an_error_of_its_class_with_the_servers_words(status):
    error, counted = refused(status, {"kind": "Status", "reason": "Because", "message": "it is so"})
    assert type(error) is ERRORS[status]
    assert (error.status, error.reason, error.message) == (status, "Because", "it is so")
    assert error.temporary is (status in (429, 500))
    assert counted == [("GET", "Job", status)]


def test_how_long_to_wait_is_passed_on():
    error, _ = refused(429, headers={"Retry-After": "7"})
    assert error.retry_after == 7.0


def test_an_answer_that_is_no_json_is_still_an_error_with_its_words():
    async def story():
        async with stub(lambda _: web.Response(status=502, text="Bad Gateway")) as (api, _, _):
            with pytest.raises(ApiError) as error:
                await api.get("Job", "team", "x")
            return error.value

    error = run(story)
    assert (error.status, error.message, error.temporary) == (502, "Bad Gateway", True)


def test_no_answer_at_all_is_something_else():
    async def story():
        counted = []
        api = KubeApi(
            client.ApiClient(client.Configuration(host="http://127.0.0.1:1")), count=lambda *call: counted.append(call)
        )
        try:
            with pytest.raises(Unreachable):
                await api.get("Job", "team", "x")
        finally:
            await api.close()
        return counted

    assert run(story) == [("GET", "Job", 0)]


def test_names_cannot_leave_their_place_in_the_path():
    assert path_of("Job", "team", "a b?x") == "/apis/batch/v1/namespaces/team/jobs/a%20b%3Fx"
    assert path_of("Pod", None) == "/api/v1/pods"


def test_a_bucket_lets_a_burst_pass_and_then_so_many_a_second():
    async def story():
        bucket = TokenBucket(rate=1000.0, burst=5)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for _ in range(5):
            await bucket.take()
        burst = loop.time() - begun
        for _ in range(50):
            await bucket.take()
        return burst, loop.time() - begun

    burst, total = run(story)
    assert burst < total
    assert total >= 0.045
