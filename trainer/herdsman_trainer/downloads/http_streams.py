"""Files over HTTP: ranges, ETags, time-outs, and which answers a retry may mend."""

import email.utils
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version

import httpx

from herdsman_trainer.downloads.remote_files import Stream, Unavailable, without_query
from herdsman_trainer.errors import BadInput

CONNECT_SECONDS, READ_SECONDS = 15.0, 30.0
"""A stop is noticed when bytes come or the time is out: well within the time a pod gets to end."""
TRANSIENT = frozenset({408, 425, 429})
"""Refusals that pass; so do all from 500 on."""
OK, PARTIAL, RANGE_NOT_SATISFIABLE = 200, 206, 416
FIRST_ERROR, FIRST_SERVER_ERROR = 400, 500
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")

Refuse = Callable[[int, Mapping[str, str]], BadInput]
"""Makes an error of an answer's status and headers that no retry mends."""


def new_client() -> httpx.Client:
    """Return a client that follows redirects, and takes its Authorization header along only within one host."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # its lines of every request show signed queries
    return httpx.Client(
        timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
        follow_redirects=True,
        headers={"User-Agent": f"herdsman/{version('herdsman')}", "Accept-Encoding": "identity"},
    )


def bearer(token: str | None) -> dict[str, str]:
    """Return the header that carries a token."""
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextmanager
def open_stream(
    client: httpx.Client, url: str, headers: Mapping[str, str], offset: int, etag: str | None, refuse: Refuse
) -> Iterator[Stream]:
    """Open a file at an offset; it begins anew where the server has another version, or cannot resume."""
    with _talking(url):
        with _request(client, url, headers, offset, etag) as response:
            status = response.status_code
            if status == OK or (status == PARTIAL and _fits(response, offset, etag)):
                yield _stream(response, url)
                return
            if status == RANGE_NOT_SATISFIABLE and offset and _total(response) == offset:
                yield Stream(offset, offset, etag, ())
                return
            if status not in (PARTIAL, RANGE_NOT_SATISFIABLE):
                raise _refusal(response, url, refuse)
        with _request(client, url, headers, 0, None) as response:  # what was asked for is not to be had from there
            if response.status_code != OK:
                raise _refusal(response, url, refuse)
            yield _stream(response, url)


def head_size(client: httpx.Client, url: str, headers: Mapping[str, str]) -> int | None:
    """Return the size of a file as far as the server says it without sending it; None is no error."""
    try:
        response = client.head(url, headers=dict(headers))
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
    size = response.headers.get("Content-Length", "")
    return int(size) if response.status_code == OK and size.isdigit() else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an answer asks to wait, given as seconds or as a time."""
    given = headers.get("Retry-After", "").strip()
    if given.isdigit():
        return float(given)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(given).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


@contextmanager
def _talking(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
        hint = "Open the URL in a browser, and name the one that it ends at."
        raise BadInput(f"The URL leads nowhere: {error}.", file=without_query(url), hint=hint) from None
    except httpx.TransportError as error:
        raise Unavailable(f"{without_query(url)} does not answer ({str(error) or type(error).__name__}).") from error


@contextmanager
def _request(
    client: httpx.Client, url: str, headers: Mapping[str, str], offset: int, etag: str | None
) -> Iterator[httpx.Response]:
    wanted = dict(headers)
    if offset:
        wanted["Range"] = f"bytes={offset}-"
        if etag is not None:
            wanted["If-Range"] = etag
    with client.stream("GET", url, headers=wanted) as response:
        yield response


def _stream(response: httpx.Response, url: str) -> Stream:
    start, size = 0, response.headers.get("Content-Length", "")
    if response.status_code == PARTIAL:
        start, total = _range(response)
    else:
        total = int(size) if size.isdigit() else None
    return Stream(start, total, _strong_etag(response), _chunks(response, url))


def _chunks(response: httpx.Response, url: str) -> Iterator[bytes]:
    with _talking(url):
        yield from response.iter_raw()


def _fits(response: httpx.Response, offset: int, etag: str | None) -> bool:
    """Whether a partial answer begins where it was asked to, in the version that it was asked for."""
    found = _strong_etag(response)
    return _range(response)[0] == offset and (etag is None or found is None or found == etag)


def _range(response: httpx.Response) -> tuple[int, int | None]:
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if found is None:
        return -1, None
    return int(found[1] or -1), int(found[2]) if found[2] != "*" else None


def _total(response: httpx.Response) -> int | None:
    return _range(response)[1]


def _strong_etag(response: httpx.Response) -> str | None:
    etag: str = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else None


def _refusal(response: httpx.Response, url: str, refuse: Refuse) -> Exception:
    status = response.status_code
    if status in TRANSIENT or status >= FIRST_SERVER_ERROR:
        return Unavailable(f"{without_query(url)} answers with status {status}.", retry_after(response.headers))
    return refuse(status, response.headers)
