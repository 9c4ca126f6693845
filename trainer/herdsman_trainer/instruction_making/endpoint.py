"""One request to an API that speaks OpenAI's chat completions: its reply, or which kind of failure it was."""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import httpx

from herdsman.api.job_config import AskedEndpoint
from herdsman_trainer.downloads.http_streams import bearer, retry_after
from herdsman_trainer.errors import BadInput
from herdsman_trainer.instruction_making.spending import Usage, tokens_of

CONNECT_SECONDS = 15.0
LARGEST_BODY = 8 * 2**20
"""Bytes of a reply that are read at most."""
MAX_TOKENS, RESPONSE_FORMAT, SEED = "max_tokens", "response_format", "seed"
"""Fields of a request that some APIs do not know; the first has another name there."""
_LONGEST_QUOTE = 300
_EXHAUSTED = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance")
"""Codes by which an API says that no waiting helps; with status 402 none is needed."""
_FILTERED = ("content_filter", "content_policy_violation", "data_inspection_failed")
"""Codes by which an API refuses one request and not the others."""
_SECRET = re.compile(r"\b(?:sk|key|Bearer)[-_ ][^\s\"',]{6,}")

Trouble = Literal["down", "limited", "exhausted", "strange"]
"""Does not answer; asks to wait; has no quota left; answers in a way that is no API's."""


@dataclass(frozen=True)
class Reply:
    """What was answered to one request."""

    text: str
    cut: bool
    """Whether it ended because it had as many tokens as it may have."""
    usage: Usage
    filtered: bool = False
    """Whether the API refuses to answer this request."""


class Unavailable(Exception):
    """No reply now; perhaps later."""

    def __init__(self, message: str, trouble: Trouble = "down", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.trouble = trouble
        self.retry_after = retry_after
        """Seconds that the API asks to wait."""


class Unsupported(Exception):
    """The API does not know a field of the request, which can do without."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


class Endpoint:
    """An API; `ask` may be called from several threads at once."""

    def __init__(
        self,
        asked: AskedEndpoint,
        seconds: float,
        *,
        environment: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._asked = asked
        self._seconds = seconds
        self._clock = clock
        self._key = _key(asked, os.environ if environment is None else environment)
        self.name = httpx.URL(asked.url).host or asked.url
        """For messages."""
        self._client = httpx.Client(
            timeout=httpx.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds)),
            headers={"User-Agent": f"herdsman/{version('herdsman')}", **bearer(self._key)},
            limits=httpx.Limits(max_connections=None),
            transport=transport,
            trust_env=not asked.ours,
        )

    def close(self) -> None:
        """End the connections, and with them the requests under way."""
        self._client.close()

    def ask(self, body: Mapping[str, Any]) -> Reply:
        """Return the reply; raises Unavailable or Unsupported, and BadInput for what no waiting mends."""
        try:
            status, headers, content = self._post(body)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            hint = f"Correct {self._asked.field}."
            raise BadInput(f"The URL {self._asked.url} leads nowhere: {error}.", hint=hint) from None
        except httpx.RequestError as error:
            why = str(error) or type(error).__name__
            raise Unavailable(f"{self.name} does not answer ({why})") from error
        if status == httpx.codes.OK:
            return self._reply(content, body)
        codes, said = _error(content)
        if codes & set(_FILTERED):
            return Reply("", cut=False, usage=Usage(1, tokens_of(_prompt(body)), 0), filtered=True)
        if status in (400, 422) and (field := _unsupported(said, body)) is not None:
            raise Unsupported(field)
        raise self._refusal(status, headers, codes, said)

    def _post(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        began = self._clock()
        parts, size = [], 0
        with self._client.stream("POST", f"{self._asked.url}/chat/completions", json=dict(body)) as response:
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > LARGEST_BODY:
                    raise Unavailable(f"{self.name} sends a reply without an end", "strange")
                if self._clock() - began > self._seconds:
                    raise Unavailable(f"{self.name} was not ready after {self._seconds:g} seconds")
            return response.status_code, response.headers, b"".join(parts)

    def _reply(self, content: bytes, body: Mapping[str, Any]) -> Reply:
        try:
            document = json.loads(content)
            choice = document["choices"][0]
            text, finish = choice["message"].get("content") or "", choice.get("finish_reason")
            if not isinstance(text, str):
                raise TypeError
            usage = document.get("usage") or {}
            sent, received = usage.get("prompt_tokens"), usage.get("completion_tokens")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise Unavailable(f"{self.name} answers, but not as OpenAI's API does", "strange") from None
        used = Usage(1, _count(sent, _prompt(body)), _count(received, text))
        return Reply(text, finish == "length", used, filtered=finish == "content_filter")

    def _refusal(self, status: int, headers: Mapping[str, str], codes: set[str], said: str) -> Exception:
        quoted = f": {self._quoted(said)}" if said else ""
        if status == httpx.codes.PAYMENT_REQUIRED or codes & set(_EXHAUSTED):
            return Unavailable(f"the account at {self.name} has no quota left{quoted}", "exhausted")
        if status == httpx.codes.TOO_MANY_REQUESTS:
            return Unavailable(f"{self.name} is asked too often{quoted}", "limited", retry_after(headers))
        if status in (408, 409, 425) or status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return Unavailable(f"{self.name} answers with status {status}{quoted}", "down", retry_after(headers))
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return self._locked_out(status, quoted)
        hint = f"Correct {self._asked.field}, and the model and the fields of the request beside it."
        if status == httpx.codes.NOT_FOUND:
            hint = (
                f"Check {self._asked.field} (it usually ends in /v1) and that the model {self._asked.model} is there."
            )
        if httpx.codes.is_redirect(status):
            hint = (
                f"Name in {self._asked.field} the URL that it leads to: {headers.get('location', 'it does not say')}."
            )
        return BadInput(f"{self.name} refuses the request with status {status}{quoted}.", hint=hint)

    def _locked_out(self, status: int, quoted: str) -> BadInput:
        if self._key is None:
            what = f"{self.name} wants a key (status {status}{quoted}), and none is given."
            hint = "Put it into a Secret and name that in spec.generate.endpoint.apiKey."
        else:
            what = f"{self.name} does not accept the key (status {status}{quoted})."
            hint = f"Correct {self._asked.key_place}: it may be mistyped, expired, or without rights to this model."
        return BadInput(what, hint=f"{hint} Then delete this resource and apply it again: replies that are there stay.")

    def _quoted(self, said: str) -> str:
        """Return what the API says, in one line, short, and without anything like a key."""
        if self._key is not None:
            said = said.replace(self._key, "…")
        said = " ".join(_SECRET.sub("…", said).split()).rstrip(".")
        return said if len(said) <= _LONGEST_QUOTE else f"{said[:_LONGEST_QUOTE]}…"


def _key(asked: AskedEndpoint, environment: Mapping[str, str]) -> str | None:
    if asked.key_variable is None:
        return None
    lines = [line.strip() for line in environment.get(asked.key_variable, "").splitlines()]
    key = next((line for line in lines if line), "")
    if not key:
        hint = f"Put the key into {asked.key_place}."
        raise BadInput(f"The key for {asked.url} is empty.", hint=hint)
    if not key.isascii() or not key.isprintable() or " " in key:
        hint = f"Correct {asked.key_place}: keys are letters, digits and signs without blanks."
        raise BadInput(f"What is given as the key for {asked.url} cannot be one.", hint=hint)
    return key


def _count(said: Any, text: str) -> int:
    """Return the tokens that the API counted, or about how many the text has."""
    return said if isinstance(said, int) and not isinstance(said, bool) and said >= 0 else tokens_of(text)


def _error(content: bytes) -> tuple[set[str], str]:
    """Return the codes and the words of an error in OpenAI's form, or the beginning of another body."""
    try:
        document = json.loads(content)
    except ValueError:
        return set(), ""
    error = document.get("error", document) if isinstance(document, dict) else {}
    if isinstance(error, str):
        return set(), error
    if not isinstance(error, dict):
        return set(), ""
    codes = {error[name] for name in ("code", "type") if isinstance(error.get(name), str)}
    said = error.get("message") or error.get("detail")
    return codes, said if isinstance(said, str) else ""


def _unsupported(said: str, body: Mapping[str, Any]) -> str | None:
    """Return the field of the request that the API complains of, if the request can do without it."""
    if "max_completion_tokens" in said and MAX_TOKENS in body:
        return MAX_TOKENS
    return next((field for field in (RESPONSE_FORMAT, SEED) if field in body and field in said), None)


def _prompt(body: Mapping[str, Any]) -> str:
    return str(body["messages"][-1]["content"])
