"""What passes through an activator arrives as it was, both ways, and as it comes."""

import asyncio
import io

from aiohttp import web

from activator.stage import play


def test_a_request_arrives_as_it_was():
    headers = {
        "Authorization": "Bearer secret",
        "X-Request-Id": "mine",
        "Content-Type": "application/json",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "1",
        "Accept-Encoding": "br",
    }

    async def scene(stage):
        await stage.start_replica()
        await stage.ask("/v1/x%2Fy?a=%20b&c=d", method="PUT", data=b"{}", headers=headers)
        host = stage.url.removeprefix("http://")
        return stage.seen, host

    ((method, path, arrived, body),), host = play(scene)
    assert (method, path, body) == ("PUT", "/v1/x%2Fy?a=%20b&c=d", b"{}")
    assert (arrived["Authorization"], arrived["X-Request-Id"], arrived["Host"]) == ("Bearer secret", "mine", host)
    assert arrived["Accept-Encoding"] == "br"
    assert "X-Hop" not in arrived, "it is about the connection"


def test_a_body_of_unknown_length_is_passed_on_in_pieces():
    async def pieces():
        for _ in range(50):
            yield b"x" * 5000

    async def scene(stage):
        await stage.start_replica()
        await stage.ask(data=pieces())
        return stage.seen

    ((_, _, headers, body),) = play(scene)
    assert (headers["Transfer-Encoding"], len(body)) == ("chunked", 250_000)


def test_an_answer_arrives_as_it_was():
    async def scene(stage):
        async def squeezed(_request):
            headers = {"Content-Encoding": "gzip", "Content-Type": "text/odd", "X-Request-Id": "mine"}
            return web.Response(body=b"\x1f\x8bwhatever", status=418, reason="Short", headers=headers)

        stage.answer = squeezed
        await stage.start_replica()
        return await stage.ask()

    status, headers, body = play(scene)
    assert (status, body) == (418, b"\x1f\x8bwhatever")
    assert (headers["Content-Encoding"], headers["Content-Type"]) == ("gzip", "text/odd")
    assert (headers["X-Request-Id"], headers["Content-Length"]) == ("mine", "10")


def events(stage, more):
    """A replica that streams one event, and others when `more` is set."""

    async def stream(request):
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        await answer.write(b"data: one\n\n")
        await more.wait()
        await answer.write(b"data: [DONE]\n\n")
        return answer

    stage.answer = stream


def test_events_come_as_they_are_sent_and_the_request_is_under_way_until_the_last():
    async def scene(stage):
        more = asyncio.Event()
        events(stage, more)
        await stage.start_replica()
        async with stage.http.post(f"{stage.url}/v1/chat/completions") as answer:
            first = await answer.content.readany()
            during = await stage.demand()
            more.set()
            rest = await answer.content.read()
        return first, during, rest, await stage.demand()

    first, during, rest, after = play(scene)
    assert (first, rest) == (b"data: one\n\n", b"data: [DONE]\n\n")
    assert (during["requests"], after["requests"]) == (1, 0)


def test_a_client_that_leaves_a_stream_ends_it_at_the_replica():
    async def scene(stage):
        events(stage, asyncio.Event())
        await stage.start_replica()
        async with stage.http.post(f"{stage.url}/v1/chat/completions") as answer:
            await answer.content.readany()
        async with asyncio.timeout(5):
            await stage.left.wait()
            while (found := await stage.demand())["requests"]:
                pass
        return found

    assert play(scene)["requests"] == 0


def test_a_refusal_comes_through_while_the_client_still_sends():
    async def scene(stage):
        async def refuse_unread(_request):
            return web.Response(status=413, text="too long", headers={"Connection": "close"})

        stage._record = refuse_unread
        await stage.start_replica()
        return await stage.ask(data=io.BytesIO(b"x" * 3_000_000))

    status, _, body = play(scene)
    assert (status, body) == (413, b"too long")
