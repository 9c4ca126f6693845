"""What an activator answers itself, in OpenAI's shape: refusals, and what needs no replica."""

import time
import uuid
from collections.abc import Mapping

from aiohttp import web

from herdsman.activator.settings import Settings
from herdsman.api_keys import REFUSED

STARTED = int(time.time())
PREFLIGHT_SECONDS = "600"


def refusal(
    status: int, message: str, code: str, *, retry_after: int | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return an error."""
    kind = {429: "rate_limit_error", 401: "invalid_request_error"}.get(status, "server_error")
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    more = {"Retry-After": str(retry_after)} if retry_after is not None else {}
    return _named(web.json_response(body, status=status, headers={**more, **(headers or {})}))


def room_full(places: int) -> web.Response:
    """Too many wait already."""
    message = f"{places} requests wait for a replica already; try again in 5 s."
    return refusal(429, message, "too_many_held_requests", retry_after=5)


def still_asleep(seconds: float) -> web.Response:
    """No replica came up in time."""
    message = f"No replica was ready within {seconds:g} s; it may still be starting. Try again in 30 s."
    return refusal(503, message, "model_not_ready", retry_after=30)


def replica_lost() -> web.Response:
    """The replica ended before it answered."""
    return refusal(502, "The replica ended before it answered; ask again.", "replica_lost", retry_after=1)


def unauthorised() -> web.Response:
    """The key is missing or wrong."""
    return refusal(401, REFUSED, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def no_key_no_waking() -> web.Response:
    """What is open without a key is not worth a replica, where the API is not open without one."""
    message = "No replica runs, and only a request with an API key starts one; ask the API below /v1 first."
    return refusal(503, message, "model_asleep", retry_after=30)


def without_a_replica(request: web.Request, settings: Settings, *, opens: bool) -> web.Response:
    """Answer what wakes nobody, while no replica can be reached; `opens` says whether the key is right."""
    origin = request.headers.get("Origin", "")
    if request.method == "OPTIONS" and origin in settings.origins:
        return preflight(request, origin)
    if request.path in ("/healthz", "/readyz"):
        return _named(web.Response(text="ok\n"))
    if not opens:
        return unauthorised() if request.path.startswith("/v1/") else no_key_no_waking()
    card = {"id": settings.model, "object": "model", "created": STARTED, "owned_by": "herdsman"}
    if request.path == "/v1/models":
        return _named(web.json_response({"object": "list", "data": [card]}))
    name = request.path.removeprefix("/v1/models/")
    if name == settings.model:
        return _named(web.json_response(card))
    message = f"The model {name!r} does not exist; this server has {settings.model!r}."
    return refusal(404, message, "model_not_found")


def preflight(request: web.Request, origin: str) -> web.Response:
    """Tell a browser that a page of this origin may ask."""
    asked = request.headers.get("Access-Control-Request-Headers")
    headers = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Max-Age": PREFLIGHT_SECONDS,
        **({"Access-Control-Allow-Headers": asked} if asked else {}),
    }
    return allowed(_named(web.Response(text="OK", headers=headers)), origin)


def allowed(answer: web.Response, origin: str) -> web.Response:
    """Let a page of this origin read the answer."""
    answer.headers.update(
        {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": "Retry-After, X-Request-Id",
            "Vary": "Origin",
        }
    )
    return answer


def _named(answer: web.Response) -> web.Response:
    answer.headers["x-request-id"] = f"req-{uuid.uuid4().hex}"
    return answer
