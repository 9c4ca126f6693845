"""`herdsman chat`: talks to a server of this home through its OpenAI API."""

import http.client
import json
import os
import sys
from collections.abc import Iterator
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
Message = dict[str, str]


def chat_command(name: str, prompt: str | None, home_option: str | None) -> None:
    """Answer one prompt, or hold a conversation until end of input; raises Refused where the server does not answer."""
    key = Key("ModelServer", name)
    found = observe_one(open_home(home_option), key)
    if found.status.phase != Phase.READY or found.status.url is None:
        told = headline(found.status).message
        raise Refused(f"{title(key)} does not serve (it is {found.status.phase}): {told} herdsman run starts it")
    model = found.manifest["spec"].get("modelName", name)
    if prompt is not None:
        _say(_answer(found.status.url, model, [{"role": "user", "content": prompt}]))
        return
    messages: list[Message] = []
    while (line := _ask()) is not None:
        if line:
            messages.append({"role": "user", "content": line})
            answer = _say(_answer(found.status.url, model, messages))
            messages.append({"role": "assistant", "content": answer})


def _ask() -> str | None:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        sys.stdout.write("\n")
        return None


def _say(parts: Iterator[str]) -> str:
    """Print the parts of an answer as they come and return the whole."""
    answer = ""
    for part in parts:
        answer += part
        sys.stdout.write(part)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return answer


def _answer(url: str, model: str, messages: list[Message]) -> Iterator[str]:
    """Yield the parts of the answer; raises Refused with what the server says against the request."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=_TIMEOUT_SECONDS)
    body = {"model": model, "messages": messages, "stream": True}
    try:
        path = f"{parts.path}/chat/completions"
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(API_KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        connection.request("POST", path, json.dumps(body).encode(), headers)
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise Refused(f"{url} answered {response.status}: {_error(response.read())}")
        for line in response:
            text = line.decode().strip().removeprefix("data:").strip()
            if text and text != "[DONE]":
                yield _delta(json.loads(text))
    except (OSError, http.client.HTTPException) as error:
        raise Refused(f"{url} broke off: {error}; herdsman get tells how the server stands") from error
    finally:
        connection.close()


def _delta(event: dict[str, Any]) -> str:
    choices = event.get("choices") or [{}]
    return str((choices[0].get("delta") or {}).get("content") or "")


def _error(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace")[:200]
