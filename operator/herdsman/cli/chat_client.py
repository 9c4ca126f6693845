"""A client of OpenAI's API on the standard library, for `chat` and `generate`."""

import http.client
import json
import os
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from herdsman.api.job_config import API_KEY_VARIABLE
from herdsman.api.v1alpha1.status import Phase
from herdsman.cli.at_home import observe_one, open_home
from herdsman.cli.names import title
from herdsman.cli.refusals import Refused
from herdsman.core.world import Key
from herdsman.local.history import headline

_TIMEOUT_SECONDS = 300.0
_RETRY_AFTER_SECONDS = 5.0
Message = dict[str, str]


class RequestRefused(Refused):
    """What a server says against a request, or that it was not reached (status 0)."""

    def __init__(self, message: str, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        """Seconds after which it may be asked again; None where that would change nothing."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; what is None is left to the server."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def body(self) -> dict[str, Any]:
        """Return the fields of a request."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class ChatClient:
    """A server and the model that is asked."""

    url: str
    """With /v1, without a slash at the end."""
    model: str
    sampling: Sampling = field(default_factory=Sampling)

    def chat(self, messages: list[Message]) -> Generator[str, None, None]:
        """Yield the parts of the next turn; raises RequestRefused."""
        for event in self._events("/chat/completions", {"messages": messages}):
            for choice in event.get("choices") or []:
                yield str((choice.get("delta") or {}).get("content") or "")

    def complete(self, prompt: str) -> Generator[str, None, None]:
        """Yield the parts of the continuation of a text; raises RequestRefused."""
        for event in self._events("/completions", {"prompt": prompt}):
            for choice in event.get("choices") or []:
                yield str(choice.get("text") or "")

    def _events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the events of an answer until its [DONE]; without that it was cut off, and is refused."""
        body = {"model": self.model, "stream": True, **body, **self.sampling.body()}
        with closing(_connection(self.url)) as connection:
            try:
                for line in _answer(connection, "POST", self.url, path, body):
                    text = line.decode().strip()
                    if not text.startswith("data:"):
                        continue
                    text = text.removeprefix("data:").strip()
                    if text == "[DONE]":
                        return
                    event = json.loads(text)
                    if "error" in event:
                        raise RequestRefused(f"{self.url} gave up: {_error(text.encode())}")
                    yield event
            except (OSError, http.client.HTTPException) as error:
                raise RequestRefused(_broke_off(self.url, error), retry_after=_RETRY_AFTER_SECONDS) from error
            except ValueError as error:
                raise RequestRefused(f"{self.url} does not answer as OpenAI's API does: {error}") from error
        raise RequestRefused(_broke_off(self.url, "the answer has no end"), retry_after=_RETRY_AFTER_SECONDS)


def find_client(
    name: str | None, url: str | None, model: str | None, sampling: Sampling, home_option: str | None
) -> ChatClient:
    """Return the client of a ModelServer of this home, or of a URL; raises Refused where nothing serves there."""
    if url is not None and name is not None:
        raise Refused(f"{name} and --url both name a server; leave one of them out", 2)
    if url is not None:
        base = _base(url)
        return ChatClient(base, model or _first_model(base), sampling)
    if name is None:
        raise Refused("no server is named; give the name of a ModelServer, or --url http://HOST:PORT", 2)
    key = Key("ModelServer", name)
    found = observe_one(open_home(home_option), key)
    if found.status.phase != Phase.READY or found.status.url is None:
        told = headline(found.status).message
        raise Refused(f"{title(key)} does not serve (it is {found.status.phase}): {told} herdsman run starts it")
    return ChatClient(found.status.url, model or found.manifest["spec"].get("modelName", name), sampling)


def _base(url: str) -> str:
    parts = urlsplit(url)
    try:
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or parts.username:
        raise Refused(f"--url {url}: this is no address of a server; it looks like http://HOST:PORT/v1", 2)
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path if path.endswith('/v1') else f'{path}/v1'}"


def _first_model(url: str) -> str:
    with closing(_connection(url)) as connection:
        try:
            return str(json.loads(_answer(connection, "GET", url, "/models").read())["data"][0]["id"])
        except (OSError, http.client.HTTPException) as error:
            raise RequestRefused(_broke_off(url, error), retry_after=_RETRY_AFTER_SECONDS) from error
        except (ValueError, LookupError, TypeError) as error:
            raise Refused(f"{url}/models does not list models as OpenAI's API does; name one with --model") from error


def _connection(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "127.0.0.1", parts.port, timeout=_TIMEOUT_SECONDS)


def _answer(
    connection: http.client.HTTPConnection, method: str, url: str, path: str, body: dict[str, Any] | None = None
) -> http.client.HTTPResponse:
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if key := os.environ.get(API_KEY_VARIABLE):
        headers["Authorization"] = f"Bearer {key}"
    connection.request(method, urlsplit(url).path + path, None if body is None else json.dumps(body).encode(), headers)
    response = connection.getresponse()
    if response.status == http.HTTPStatus.OK:
        return response
    message = f"{url} answered {response.status}: {_error(response.read())}"
    if response.status == http.HTTPStatus.UNAUTHORIZED:
        message += f" {API_KEY_VARIABLE} is where it is taken from."
    raise RequestRefused(message, response.status, _retry_after(response))


def _retry_after(response: http.client.HTTPResponse) -> float | None:
    if response.status not in (429, 502, 503, 504):
        return None
    try:
        return max(0.0, float(response.headers.get("Retry-After", "")))
    except ValueError:
        return _RETRY_AFTER_SECONDS


def _broke_off(url: str, why: object) -> str:
    return f"{url} broke off: {why}; herdsman get tells how the server stands"


def _error(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace")[:200]
