"""What stands before the routes: the API key, and the count of answers."""

import hmac
from collections.abc import Sequence

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from herdsman_server.errors import error_response
from herdsman_server.openai_api import ApiError
from herdsman_server.state import ServerState


class Gate:
    """Checks the API key and counts answers, before and behind the routes; it leaves streams alone.

    While the server is about to stop, each answer is the last one of its connection.
    """

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        status = "500"

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                if self._state.draining:
                    message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        try:
            if _authorised(Request(scope), self._state.api_keys):
                await self._app(scope, receive, counted)
            else:
                message = "The API key is missing or wrong; send it as `Authorization: Bearer KEY`."
                await error_response(ApiError(401, message, code="invalid_api_key"))(scope, receive, counted)
        finally:
            # Only routes that exist become label values, or anybody could make series without end.
            route = scope.get("route")
            endpoint = route.path if route is not None else "other"
            self._state.metrics.requests.labels(endpoint, status).inc()


def _authorised(request: Request, keys: Sequence[bytes]) -> bool:
    if not keys:
        return True
    given = request.headers.get("authorization", "").removeprefix("Bearer ").strip().encode()
    # Every key is compared, each in constant time, so that the time tells nothing.
    matches = [hmac.compare_digest(given, key) for key in keys]
    return any(matches)
