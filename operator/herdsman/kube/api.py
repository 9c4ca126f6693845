"""The few requests Herdsman makes of the API server, as JSON in and JSON out, each limited, timed and counted."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Self
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import client, config

from herdsman.api.meta import GROUP, VERSION
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.kube.errors import Unreachable, api_error
from herdsman.kube.port import FIELD_MANAGER, Body, Listing

TIMEOUT = aiohttp.ClientTimeout(total=30, connect=10)
PAGE = 250
"""Objects of a list that are fetched at once."""

PATHS: dict[str, tuple[str, str]] = {
    "ConfigMap": ("api/v1", "configmaps"),
    "Event": ("api/v1", "events"),
    "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims"),
    "Pod": ("api/v1", "pods"),
    "Service": ("api/v1", "services"),
    "Secret": ("api/v1", "secrets"),
    "Job": ("apis/batch/v1", "jobs"),
    "Deployment": ("apis/apps/v1", "deployments"),
    "Ingress": ("apis/networking.k8s.io/v1", "ingresses"),
    "HorizontalPodAutoscaler": ("apis/autoscaling/v2", "horizontalpodautoscalers"),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets"),
    "ServiceMonitor": ("apis/monitoring.coreos.com/v1", "servicemonitors"),
    "Lease": ("apis/coordination.k8s.io/v1", "leases"),
    **{kind: (f"apis/{GROUP}/{VERSION}", info.plural) for kind, info in KINDS.items()},
}
"""Prefix and plural of every kind that is read or written."""


def path_of(kind: str, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
    """Return the URL path of an object, or of a collection where `name` is None."""
    prefix, plural = PATHS[kind]
    parts = [prefix, *(["namespaces", namespace] if namespace else []), plural, *([name] if name else [])]
    return "/" + "/".join([quote(part, safe="/") for part in parts] + ([subresource] if subresource else []))


class TokenBucket:
    """Lets `rate` requests a second pass, and `burst` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._level = float(burst)
        self._last: float | None = None
        self._turn = asyncio.Lock()

    async def take(self) -> None:
        """Wait for one request's turn."""
        async with self._turn:
            now = asyncio.get_running_loop().time()
            elapsed = now - self._last if self._last is not None else 0.0
            self._level = min(self._burst, self._level + elapsed * self._rate)
            self._last = now
            if self._level < 1:
                await asyncio.sleep((1 - self._level) / self._rate)
                self._level = 1.0
                self._last = asyncio.get_running_loop().time()
            self._level -= 1


class KubeApi:
    """A connection to one API server. Raises ApiError for refusals and Unreachable where there is no answer."""

    def __init__(
        self,
        connection: client.ApiClient,
        *,
        rate: float = 200.0,
        burst: int = 400,
        count: Callable[[str, str, int], None] = lambda *_: None,
    ) -> None:
        self._connection = connection
        self._host = connection.configuration.host
        self._bucket = TokenBucket(rate, burst)
        self._count = count

    @classmethod
    async def connect(cls, **options: Any) -> Self:
        """Connect with the pod's service account, or with the kubeconfig where there is none."""
        configuration = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            await config.load_kube_config(client_configuration=configuration)
        configuration.client_session_kwargs = {"trust_env": False}  # else every request looks for a netrc file
        return cls(client.ApiClient(configuration), **options)

    async def close(self) -> None:
        """Close the connections."""
        await self._connection.close()

    async def get(self, kind: str, namespace: str, name: str) -> Body:
        """Return one object; NotFound where there is none."""
        return await self._request("GET", kind, path_of(kind, namespace, name))

    async def pages(self, kind: str, namespace: str | None, **query: str | None) -> AsyncIterator[Listing]:
        """Return all objects of a kind, a few hundred at a time, all of them as they were at the same moment."""
        page: dict[str, str | None] = {"limit": str(PAGE), **query}
        while True:
            answer = await self._request("GET", kind, path_of(kind, namespace), query=page)
            metadata = answer.get("metadata", {})
            version = metadata.get("resourceVersion", "")
            items = [{"kind": kind, **item} for item in answer["items"]]
            yield Listing(items, int(version) if version.isdigit() else 0)
            if not (token := metadata.get("continue")):
                return
            page["continue"] = token

    async def list_objects(self, kind: str, namespace: str | None, **query: str | None) -> Listing:
        """Return all objects of a kind in one namespace, or in all; `query` holds labelSelector, fieldSelector."""
        found = [page async for page in self.pages(kind, namespace, **query)]
        return Listing([item for page in found for item in page.items], found[-1].version)

    async def apply(
        self,
        body: Mapping[str, Any],
        *,
        subresource: str | None = None,
        manager: str = FIELD_MANAGER,
        force: bool = True,
    ) -> Body:
        """Server-side apply: the object holds what `body` says, and this manager's other fields vanish.

        Without `force`, Conflict where another manager has set one of the fields otherwise.
        """
        kind, metadata = body["kind"], body["metadata"]
        path = path_of(kind, metadata["namespace"], metadata["name"], subresource)
        query = {"fieldManager": manager, "force": str(force).lower()}
        return await self._request("PATCH", kind, path, query=query, body=body, content="application/apply-patch+yaml")

    async def create(self, body: Mapping[str, Any]) -> Body:
        """Create an object; Conflict where the name is taken."""
        kind = body["kind"]
        path = path_of(kind, body["metadata"]["namespace"])
        return await self._request("POST", kind, path, query={"fieldManager": FIELD_MANAGER}, body=body)

    async def merge(self, kind: str, namespace: str, name: str, patch: Mapping[str, Any]) -> Body:
        """Merge a patch into an object."""
        path = path_of(kind, namespace, name)
        query = {"fieldManager": FIELD_MANAGER}
        return await self._request("PATCH", kind, path, query=query, body=patch, content="application/merge-patch+json")

    async def delete(self, kind: str, namespace: str, name: str, *, uid: str | None = None) -> None:
        """Delete an object and, in the background, what it owns; `uid` guards against a newer one of the same name."""
        options: Body = {"propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        await self._request("DELETE", kind, path_of(kind, namespace, name), body=options)

    async def _request(
        self,
        method: str,
        kind: str,
        path: str,
        *,
        query: Mapping[str, str | None] | None = None,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
    ) -> Body:
        await self._bucket.take()
        given = {key: value for key, value in (query or {}).items() if value is not None}
        url = f"{self._host}{path}" + (f"?{urlencode(given)}" if given else "")
        headers = {"Accept": "application/json", "Content-Type": content, **await self._authorization()}
        try:
            answer = await self._connection.call_api(method, url, headers, body=body, _request_timeout=TIMEOUT)
            data = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._count(method, kind, 0)
            raise Unreachable(f"{method} {path}: {error or type(error).__name__}") from error
        self._count(method, kind, answer.status)
        if answer.status >= 400:
            retry_after = answer.getheader("Retry-After")
            seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
            raise api_error(answer.status, read_answer(data), seconds)
        return read_answer(data)

    async def _authorization(self) -> dict[str, str]:
        settings = self._connection.configuration
        token = await settings.get_api_key_with_prefix("BearerToken", alias="authorization")
        return {"Authorization": token} if token else {}


def read_answer(data: bytes) -> Body:
    """Return an answer as JSON; of what is none, such as a proxy's page, the beginning as a message."""
    try:
        body = json.loads(data)
    except ValueError:
        return {"message": data[:200].decode(errors="replace")}
    return body if isinstance(body, dict) else {"message": str(body)[:200]}
