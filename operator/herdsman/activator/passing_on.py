"""Passes a request on to a replica and its answer back, both as they come and as they are."""

import asyncio
import logging
from collections.abc import Iterable

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from herdsman.activator.answers import replica_lost
from herdsman.activator.waiting_room import CONNECT_SECONDS

log = logging.getLogger(__name__)

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers about one connection, which are not passed on (RFC 9110, 7.6.1)."""
OWN_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""What the client library would add by itself."""


class NotConnectedError(Exception):
    """No connection to a replica could be opened, so nothing of the request was sent."""


def new_session() -> aiohttp.ClientSession:
    """Return a client that opens a connection for every request.

    So each one goes to a replica that is ready at that moment, and none onto a connection that the replica is closing.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True, limit=0, use_dns_cache=False),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=OWN_HEADERS,
    )


async def pass_on(
    request: web.Request, session: aiohttp.ClientSession, backend: URL, *, last: bool
) -> web.StreamResponse:
    """Return the replica's answer; raises NotConnectedError before anything was sent.

    A client that leaves cancels this, which closes the connection to the replica. `last` tells the client that no other
    request is taken on its connection.
    """
    target = backend.join(URL(request.raw_path, encoded=True))
    body = request.content if request.can_read_body else None
    try:
        async with session.request(
            request.method, target, headers=_kept(request.headers), data=body, allow_redirects=False
        ) as upstream:
            return await _handed_back(request, upstream, last=last)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise NotConnectedError from error
    except (aiohttp.ClientError, OSError) as error:
        log.warning("A replica ended before it answered: %s.", type(error).__name__)
        return replica_lost()


async def _handed_back(request: web.Request, upstream: aiohttp.ClientResponse, *, last: bool) -> web.StreamResponse:
    answer = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=_kept(upstream.headers))
    if last:
        answer.force_close()
    await answer.prepare(request)
    try:
        async for piece in upstream.content.iter_any():
            await answer.write(piece)
    except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError, asyncio.IncompleteReadError) as error:
        if request.transport is not None:  # cut off, so that the client knows that this is not all
            log.warning("An answer was cut off: %s.", type(error).__name__)
            request.transport.abort()
        return answer
    await answer.write_eof()
    return answer


def _kept(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Return the headers that are about the message and not about the connection."""
    named = {name.strip().lower() for value in headers.getall("Connection", ()) for name in value.split(",")}
    return CIMultiDict(_without(headers.items(), HOP_BY_HOP | named))


def _without(headers: Iterable[tuple[str, str]], names: frozenset[str] | set[str]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name.lower() not in names]
