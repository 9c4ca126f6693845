"""The chat page at `/`: static files of this package, shown under a policy that lets nothing else in."""

import hashlib
import re
from importlib.resources import files

from fastapi import FastAPI, Request
from fastapi.responses import Response

from herdsman_server.openai_api import ApiError

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?")


def add_page(app: FastAPI) -> None:
    """Serve the page at / and its parts below /page/; they need no key, for they hold nothing but the page.

    `/?with=ORIGIN` lets the page talk to a second server too, which it compares with this one; to any other
    it cannot, whatever it is told.
    """
    parts = {part.name: part.read_bytes() for part in (files(__package__) / "static").iterdir() if _type(part.name)}

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        """The chat page."""
        return _answer(request, "index.html", parts["index.html"])

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str, request: Request) -> Response:
        """A part of the chat page."""
        if name not in parts:
            raise ApiError(404, f"The chat page has no part {name!r}.")
        return _answer(request, name, parts[name])


def policy(second_origin: str | None) -> str:
    """Return the Content-Security-Policy: own files only, and requests to this server and at most one other."""
    servers = ["'self'"]
    if second_origin and _ORIGIN.fullmatch(second_origin):
        servers.append(second_origin)
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        f"connect-src {' '.join(servers)}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _answer(request: Request, name: str, content: bytes) -> Response:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": policy(request.query_params.get("with")),
        "ETag": tag,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_type(name), headers=headers)


def _type(name: str) -> str | None:
    return _TYPES.get(name.rpartition(".")[2])
