"""An API server over HTTP with objects in memory: lists in pages, logs that grow, dry runs judged by the CRDs."""

import asyncio
import copy
import json
import re
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from aiohttp import web

from admission import Case, _defaulted, crd_schema, judged_by_crd
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.kubectl.places import PLACES

Body = dict[str, Any]
NOW = "2026-01-02T03:00:00Z"
PAGE = 3
"""Objects of a page, however many are asked for."""
_PATH = re.compile(
    r"^/(?P<prefix>api/v1|apis/[^/]+/[^/]+)(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<subresource>log))?$"
)
_KINDS = {place: kind for kind, place in PLACES.items()}


class StubCluster:
    """One API server in a thread of its own, and what it holds."""

    def __init__(self):
        self.objects: dict[tuple[str, str, str], Body] = {}
        self.logs: dict[tuple[str, str], list[str]] = {}
        """Lines by pod and container, each with its time."""
        self.seen: list[tuple[str, str, dict[str, str], Any]] = []
        self.headers: list[dict[str, str]] = []
        self.refusals: dict[tuple[str, str], tuple[int, str]] = {}
        """(method, path's end): status and message."""
        self.rules: list[Body] = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
        self.version = {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
        self.served = [info.plural for info in KINDS.values()]
        self.groups = ["apps", "batch"]
        self.on: dict[str, list[Callable[[], None]]] = defaultdict(list)
        """What happens before the next answers to `GET path's end`, one each."""
        self.cut: set[str] = set()
        """Pods whose next log breaks off after its first line."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    # what tests put in

    def add(self, body: Body, namespace: str | None = "team", **status: Any) -> Body:
        """Store an object; of ours with the CRD's defaults."""
        stored = copy.deepcopy(body)
        kind, metadata = stored["kind"], stored["metadata"]
        if kind in KINDS:
            stored = {**_defaulted(crd_schema(kind), stored), "apiVersion": "herdsman.dev/v1alpha1"}
            metadata = stored["metadata"]
        if namespace is not None:
            metadata.setdefault("namespace", namespace)
        metadata.setdefault("uid", f"uid-{kind}-{metadata['name']}")
        metadata.setdefault("creationTimestamp", NOW)
        metadata.setdefault("generation", 1)
        metadata.setdefault("resourceVersion", "7")
        if status:
            stored["status"] = status
        self.objects[kind, metadata.get("namespace") or "", metadata["name"]] = stored
        return stored

    def get(self, kind: str, name: str, namespace: str = "team") -> Body:
        return self.objects[kind, namespace, name]

    def requests(self, method: str) -> list[str]:
        return [path for verb, path, _, _ in self.seen if verb == method]

    # the server

    def __enter__(self):
        self._thread.start()
        self.address = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *error):
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> str:
        app = web.Application()
        app.add_routes([web.route("*", "/{path:.*}", self._handle)])
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _handle(self, request):
        text = await request.text()
        body = json.loads(text) if text else None
        self.seen.append((request.method, request.path, dict(request.query), body))
        self.headers.append(dict(request.headers))
        for end, happenings in self.on.items():
            if request.method == "GET" and request.path.endswith(end) and happenings:
                happenings.pop(0)()
        for (method, end), (status, message) in self.refusals.items():
            if request.method == method and request.path.endswith(end):
                return _refused(status, message)
        special = {
            "/version": lambda: self.version,
            "/apis": lambda: {"groups": [{"name": name} for name in self.groups]},
            "/apis/herdsman.dev/v1alpha1": lambda: {"resources": [{"name": name} for name in self.served]},
            "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews": lambda: {"status": {"resourceRules": self.rules}},
        }
        if request.path in special:
            answer = special[request.path]()
            return _no_page() if answer == {"resources": []} else web.json_response(answer)
        found = _PATH.match(request.path)
        kind = _KINDS.get((found["prefix"], found["plural"])) if found else None
        if kind is None or (kind in KINDS and found["plural"] not in self.served):
            return _no_page()
        return await self._answer(request, kind, found, body)

    async def _answer(self, request, kind, found, body):
        where = kind, found["namespace"] or "", found["name"] or ""
        if request.method == "POST":
            return self._create(kind, where[1], body, request.query)
        if not found["name"]:
            return self._list(kind, found["namespace"], request.query)
        if where not in self.objects:
            return _refused(404, f'{found["plural"]} "{where[2]}" not found')
        if found["subresource"]:
            return await self._log(request, where)
        if request.method == "PUT":
            return self._replace(where, body, request.query)
        if request.method == "PATCH":
            stored = self.objects[where]
            stored["spec"] = {**stored["spec"], **body["spec"]}
            stored["metadata"]["generation"] += 1
        return web.json_response(self.objects[where])

    def _list(self, kind, namespace, query):
        wanted = dict(item.split("=") for item in query.get("labelSelector", "").split(",") if item)
        field = query.get("fieldSelector", "=").partition("=")[2]
        items = [
            body
            for (found, where, _), body in sorted(self.objects.items())
            if found == kind
            and namespace in (None, where)
            and wanted.items() <= (body["metadata"].get("labels") or {}).items()
            and (not field or body["involvedObject"]["uid"] == field)
        ]
        start = int(query.get("continue", "0"))
        more = str(start + PAGE) if start + PAGE < len(items) else ""
        bare = [body if kind in KINDS else {k: v for k, v in body.items() if k != "kind"} for body in items]
        return web.json_response({"metadata": {"continue": more}, "items": bare[start : start + PAGE]})

    def _create(self, kind, namespace, body, query):
        assert query.get("dryRun") == "All", "the plugin makes nothing"
        if (refusal := _judged(kind, body, None)) is not None:
            return refusal
        return web.json_response({**body, "spec": _defaulted(crd_schema(kind), body)["spec"]}, status=201)

    def _replace(self, where, body, query):
        assert query.get("dryRun") == "All", "the plugin replaces nothing"
        stored = self.objects[where]
        assert body["metadata"]["resourceVersion"] == stored["metadata"]["resourceVersion"]
        if (refusal := _judged(where[0], body, stored)) is not None:
            return refusal
        return web.json_response({**body, "spec": _defaulted(crd_schema(where[0]), body)["spec"]})

    async def _log(self, request, where):
        """Send the lines there are; with follow, also those that come until the pod has ended or is gone."""
        query, pod = request.query, where[2]
        assert query["timestamps"] == "true"
        lines = self.logs.get((pod, query["container"]))
        if lines is None:
            return _refused(400, f'container "{query["container"]}" in pod "{pod}" is waiting to start')
        start = len(lines) - int(query["tailLines"]) if "tailLines" in query else 0
        if "sinceTime" in query:
            start = next(
                (place for place, line in enumerate(lines) if line[:19] >= query["sinceTime"][:19]), len(lines)
            )
        sent = max(0, start)
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            for line in lines[sent:]:
                await answer.write(f"{line}\n".encode())
                sent += 1
                if pod in self.cut:
                    self.cut.discard(pod)
                    request.transport.close()
                    return answer
            ended = self.objects.get(where, {}).get("status", {}).get("phase") in (None, "Succeeded", "Failed")
            if (ended and sent == len(lines)) or "follow" not in query:
                await answer.write_eof()
                return answer
            await asyncio.sleep(0.005)


def _judged(kind, body, stored):
    bare = [{name: item[name] for name in ("apiVersion", "kind", "spec")} for item in (body, stored) if item]
    for item in bare:
        item["metadata"] = {"name": body["metadata"]["name"]}
    wrong = judged_by_crd(Case(kind, "", bare[0], bare[1] if stored else None))
    if not wrong:
        return None
    name = body["metadata"]["name"]
    return _refused(422, f'{kind}.herdsman.dev "{name}" is invalid: {wrong[0]}: Invalid value')


def _refused(status, message):
    reasons = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict", 422: "Invalid"}
    body = {"kind": "Status", "status": "Failure", "reason": reasons.get(status, "Unknown"), "message": message}
    return web.json_response(body, status=status)


def _no_page():
    return web.Response(status=404, text="404 page not found\n")
