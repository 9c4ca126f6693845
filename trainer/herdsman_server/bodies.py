"""Reads the bodies of requests: no more than is allowed, and no longer; what was read is handed on."""

import asyncio
import json
import re

from starlette.types import Message, Receive, Scope

from herdsman.api.v1alpha1.model_server import ServerLimits
from herdsman_server.openai_api import ApiError

_SUSPICIOUS = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]|\x00")
"""An escaped surrogate, an encoded one, or another encoding than UTF-8; most bodies have none of these."""
LINGER_SECONDS = 2.0
"""So long a client that is still sending is listened to after a refusal, or it would not hear of it."""


class BodyNotReadError(Exception):
    """The client left before its body was complete."""


async def read_body(scope: Scope, receive: Receive, limits: ServerLimits) -> bytes:
    """Return the body of a request; never holds more of it than `limits.body_bytes`.

    Raises ApiError 413 as soon as it is known to be longer, 408 where it takes too long, BodyNotReadError.
    """
    most = limits.body_bytes
    stated = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    if stated.isdigit() and int(stated) > most:
        raise _too_large(f"has {int(stated)} bytes", most)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise BodyNotReadError
                piece = message.get("body", b"")
                size += len(piece)
                if size > most:
                    raise _too_large(f"has {size} bytes so far", most)
                pieces.append(piece)
                if not message.get("more_body", False):
                    return b"".join(pieces)
    except TimeoutError:
        text = f"The body was not complete after {limits.body_seconds} s ({size} bytes came); send it faster."
        raise ApiError(408, text, headers={"Connection": "close"}) from None


def check_text(body: bytes) -> None:
    """Raise ApiError 400 where JSON holds half a surrogate pair: JSON allows it, and no tokenizer can encode it."""
    if _SUSPICIOUS.search(body) is None:
        return
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        text = "The body holds half a character, a lone surrogate from \\ud800 to \\udfff; send whole characters."
        raise ApiError(400, text) from None
    except (ValueError, RecursionError):
        return  # no JSON, which the routes tell better


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives this body first, and then what else comes: that the client has left."""
    given = False

    async def first_the_body() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return first_the_body


async def linger(receive: Receive) -> None:
    """Throw away what the client still sends, for a while: a connection closed at once would take the answer along."""
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass
    except TimeoutError:
        return


def _too_large(what: str, most: int) -> ApiError:
    text = f"The body {what}, and this server takes {most} at most; send less."
    return ApiError(413, text, code="request_too_large", headers={"Connection": "close"})
