"""The connection to an API server as a person has it: a kubeconfig, one of its contexts, a namespace."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import yaml
from kubernetes.aio import client, config

from herdsman.cli.refusals import USAGE, Refused
from herdsman.kube.api import KubeApi, read_answer
from herdsman.kube.errors import Unreachable, api_error
from herdsman.kube.port import Body
from herdsman.kubectl.options import Options
from herdsman.kubectl.places import path_to

FIELD_MANAGER = "kubectl-herdsman"
KUBECONFIG = "KUBECONFIG"
DEFAULT_KUBECONFIG = "~/.kube/config"
ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_PAGE = 500
_STREAM = aiohttp.ClientTimeout(total=None, connect=10)


class Connection(KubeApi):
    """An API server, with the namespace that is meant unless another one is named.

    Raises ApiError for refusals and Unreachable where there is no answer.
    """

    context = "in-cluster"
    namespace = "default"

    @property
    def server(self) -> str:
        """The address of the API server."""
        return str(self._host)

    async def read(self, path: str, **query: str | None) -> Body:
        """Return what lies at a path."""
        return await self._request("GET", path, path, query=query)

    async def find(self, kind: str, namespace: str | None, name: str) -> Body:
        """Return one object; NotFound where there is none."""
        return {"kind": kind, **await self.read(path_to(kind, namespace, name))}

    async def items(self, kind: str, namespace: str | None = None, **query: str | None) -> list[Body]:
        """Return all objects of a kind in a namespace, or in all; `query` holds labelSelector, fieldSelector."""
        page: dict[str, str | None] = {"limit": str(_PAGE), **query}
        found: list[Body] = []
        while True:
            answer = await self.read(path_to(kind, namespace), **page)
            found += ({"kind": kind, **item} for item in answer.get("items") or ())
            if not (token := (answer.get("metadata") or {}).get("continue")):
                return found
            page["continue"] = token

    async def send(
        self, method: str, path: str, body: Mapping[str, Any], *, content: str = "application/json", **query: str
    ) -> Body:
        """Send an object to a path."""
        asked = {"fieldManager": FIELD_MANAGER, **query}
        return await self._request(method, path, path, query=asked, body=body, content=content)

    async def patch(self, kind: str, namespace: str, name: str, patch: Mapping[str, Any]) -> Body:
        """Merge a patch into an object."""
        return await self.send("PATCH", path_to(kind, namespace, name), patch, content="application/merge-patch+json")

    async def lines(self, path: str, **query: str | None) -> AsyncIterator[str]:
        """Yield the lines of a log as they come, without their ends."""
        url = f"{self._host}{path}?{urlencode({key: value for key, value in query.items() if value is not None})}"
        headers = {"Accept": "*/*", **await self._authorization()}
        try:
            answer = await self._connection.call_api("GET", url, headers, _request_timeout=_STREAM)
            try:
                if answer.status >= 400:
                    raise api_error(answer.status, read_answer(await answer.read()), None)
                open_line = b""
                async for chunk in answer.response.content.iter_any():
                    *whole, open_line = (open_line + chunk).split(b"\n")
                    for line in whole:
                        yield line.decode(errors="replace")
                if open_line:
                    yield open_line.decode(errors="replace")
            finally:
                answer.response.close()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"GET {path}: {error or type(error).__name__}") from error


@asynccontextmanager
async def connected(options: Options) -> AsyncIterator[Connection]:
    """Open a connection; raises Refused where the kubeconfig leads to none."""
    connection = await _connect(options)
    try:
        yield connection
    finally:
        await connection.close()


async def _connect(options: Options) -> Connection:
    settings = client.Configuration()
    files = options.kubeconfig or os.environ.get(KUBECONFIG) or DEFAULT_KUBECONFIG
    there = any(Path(file).expanduser().is_file() for file in files.split(os.pathsep) if file)
    context, namespace = "in-cluster", "default"
    try:
        if there:
            loader = await config.load_kube_config(files, options.context, settings, persist_config=False)
            context = loader.current_context["name"]
            namespace = loader.current_context["context"].get("namespace") or namespace
        else:
            if options.kubeconfig or options.context:
                raise Refused(f"there is no kubeconfig at {files}; name one with --kubeconfig FILE", USAGE)
            config.load_incluster_config(client_configuration=settings)
            namespace = ACCOUNT_NAMESPACE.read_text().strip() if ACCOUNT_NAMESPACE.is_file() else namespace
    except config.ConfigException as error:
        raise Refused(_wrong_kubeconfig(error, files, options, there=there), USAGE) from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise Refused(f"{files} is no kubeconfig ({told}); name another with --kubeconfig FILE", USAGE) from error
    settings.client_session_kwargs = {"trust_env": True}
    try:
        connection = Connection(client.ApiClient(settings))
    except OSError as error:  # certificates that cannot be read, among them ssl.SSLError
        raise Refused(f"the certificates of the context {context} in {files} cannot be used: {error}", USAGE) from error
    connection.context = context
    connection.namespace = options.namespace or namespace
    return connection


def _wrong_kubeconfig(error: Exception, files: str, options: Options, *, there: bool) -> str:
    if not there:
        return f"there is no cluster to ask: no kubeconfig at {files}; set {KUBECONFIG} or give --kubeconfig FILE"
    contexts = _contexts(files)
    if options.context and options.context not in contexts:
        known = f"there are {', '.join(contexts)}" if contexts else "there are none"
        return f"{files} has no context {options.context}; {known}"
    if "current-context" in str(error) or (not options.context and not contexts):
        return f"{files} has no current context; kubectl config use-context NAME sets one, --context NAME takes one"
    return f"{files} cannot be used: {error}"


def _contexts(files: str) -> list[str]:
    try:
        merged = config.kube_config.KubeConfigMerger(files).config
        return [item["name"] for item in merged.value.get("contexts") or ()]
    except (config.ConfigException, AttributeError, KeyError, TypeError, ValueError):
        return []
