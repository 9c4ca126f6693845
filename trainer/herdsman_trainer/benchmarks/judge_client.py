"""Asks a judge over OpenAI's chat API: patient with what passes, plain about what does not."""

import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import httpx

from herdsman.api.job_config import JUDGE_KEY_VARIABLE
from herdsman.api.v1alpha1.evaluation_tasks import JudgeEndpoint
from herdsman_trainer.downloads.http_streams import FIRST_SERVER_ERROR, TRANSIENT, bearer, retry_after
from herdsman_trainer.downloads.remote_files import Unavailable
from herdsman_trainer.errors import BadInput, Temporary

TRIES = 6
FIRST_SECONDS, LONGEST_SECONDS, LONGEST_ASKED_SECONDS = 1.0, 30.0, 120.0
REPLY_TOKENS = 512
_SHOWN = 200
_SLICE_SECONDS = 0.5
log = logging.getLogger(__name__)


def judge_key(endpoint: JudgeEndpoint, environment: Mapping[str, str]) -> str | None:
    """Return the key; BadInput where the spec names a Secret and the environment has nothing of it."""
    if endpoint.api_key is None:
        return None
    key = environment.get(JUDGE_KEY_VARIABLE, "").strip()
    if not key:
        hint = f"Put it into the Secret that apiKey names; with herdsman run, export {JUDGE_KEY_VARIABLE}."
        raise BadInput(f"The judge's apiKey is set and the environment has no {JUDGE_KEY_VARIABLE}.", hint=hint)
    return key


class JudgeClient:
    """One judge; used by several threads."""

    def __init__(
        self,
        endpoint: JudgeEndpoint,
        key: str | None,
        *,
        check: Callable[[], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`check` is called while it waits, and raises to stop."""
        self._endpoint = endpoint
        self._url = f"{endpoint.url.rstrip('/')}/chat/completions"
        self._check = check
        self._sleep = sleep
        self._client = httpx.Client(timeout=httpx.Timeout(endpoint.timeout_seconds, connect=15), headers=bearer(key))
        logging.getLogger("httpx").setLevel(logging.WARNING)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, prompt: str) -> str:
        """Return the reply to one message.

        Raises BadInput where the endpoint refuses for good, Temporary where it does not answer for minutes.
        """
        for attempt in range(1, TRIES + 1):
            self._check()
            try:
                return self._reply(prompt)
            except Unavailable as error:
                if attempt == TRIES:
                    hint = "What is judged already is kept, and the next attempt goes on from there."
                    raise Temporary(f"{error} Tried {TRIES} times.", hint=hint) from None
                wait = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** (attempt - 1)) * random.uniform(0.8, 1.2)
                if error.retry_after is not None:
                    wait = min(LONGEST_ASKED_SECONDS, max(wait, error.retry_after))
                log.warning("%s Trying again in %.0f s.", error, wait)
                self._pause(wait)
        raise AssertionError("the last try returns or raises")

    def _pause(self, seconds: float) -> None:
        while seconds > 0:
            self._check()
            self._sleep(min(_SLICE_SECONDS, seconds))
            seconds -= _SLICE_SECONDS

    def _reply(self, prompt: str) -> str:
        body = {
            "model": self._endpoint.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": REPLY_TOKENS,
        }
        try:
            response = self._client.post(self._url, json=body)
        except httpx.InvalidURL as error:
            raise self._bad(f"the URL cannot be used: {error}.", "Correct endpoint.url.") from None
        except httpx.HTTPError as error:
            raise Unavailable(f"The judge at {self._url} does not answer ({type(error).__name__}: {error}).") from error
        status = response.status_code
        if status in TRANSIENT or status >= FIRST_SERVER_ERROR:
            raise Unavailable(f"The judge at {self._url} answers with status {status}.", retry_after(response.headers))
        if status != HTTPStatus.OK:
            raise self._refused(status, response.text)
        return self._content(response)

    def _content(self, response: httpx.Response) -> str:
        try:
            content: Any = response.json()["choices"][0]["message"]["content"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, IndexError, TypeError):
            said = response.text[:_SHOWN]
            hint = "endpoint.url is the base of an OpenAI API, such as https://api.example.com/v1."
            raise self._bad(f"the answer is none of a chat: {said!r}.", hint) from None
        return content if isinstance(content, str) else ""

    def _refused(self, status: int, said: str) -> BadInput:
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return self._bad(f"the key is refused (status {status}).", "Check the Secret that endpoint.apiKey names.")
        if status == HTTPStatus.NOT_FOUND:
            hint = "Correct endpoint.url (the part before /chat/completions) or endpoint.model."
            return self._bad(f"there is no such API or model (status {status}: {said[:_SHOWN]}).", hint)
        return self._bad(f"the request is refused (status {status}: {said[:_SHOWN]}).", "Correct judge.endpoint.")

    def _bad(self, message: str, hint: str) -> BadInput:
        return BadInput(f"The judge at {self._url}: {message}", hint=hint)
