"""Many single-pod runs on pretend nodes: how fast the operator is beside plain Jobs, and how much it writes.

    python benchmarks/operator_runs.py 500 1000 5000 --paced 60 --record benchmarks/operator.md

Every size is measured three ways on the same cluster, one after the other: the raw write rate of the API server, the
runs, and as many plain Jobs with the same pods. `--paced 60` adds 60 runs at three a second, without plain Jobs. The
goals stand beside the figures; the exit code is 1 where one is missed.

Needs KUBECONFIG of a cluster that may be filled with objects, our CRDs in it, and kwok and kubectl on PATH. Prints a
table and one JSON line, and writes them with the date and the machine where `--record` says.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from base64 import b64decode
from pathlib import Path
from typing import Any

import aiohttp
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
from operator_nodes import ANNOTATION, PODS_A_NODE, prepare, tidy
from operator_report import goals, table

HERE = Path(__file__).resolve().parent
PORT = 18090
WRITES = {"POST", "PUT", "PATCH", "APPLY"}
"""Nothing is deleted while runs work; what an earlier case left behind is."""


PATIENCE = 900.0
"""Seconds that one case may take."""
UNRELATED = ("leases", "nodes", "tokenreviews", "namespaces")


class Server:
    """The API server of the kubeconfig."""

    def __init__(self) -> None:
        document = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
        cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
        context = ssl.create_default_context(cadata=_text(cluster, "certificate-authority"))
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as pem:
            pem.write(_text(user, "client-certificate") + _text(user, "client-key"))
            pem.flush()
            context.load_cert_chain(pem.name)
        self.url, self.context = cluster["server"], context
        self.session: aiohttp.ClientSession

    async def __aenter__(self) -> "Server":
        connector = aiohttp.TCPConnector(ssl=self.context, limit=64)
        self.session = aiohttp.ClientSession(self.url, connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def json(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        async with self.session.request(method, path, json=body, **options) as answer:
            document = await answer.json(content_type=None)
            if answer.status >= 400 and answer.status != 409:
                raise RuntimeError(f"{method} {path}: {document}")
            return document

    async def text(self, path: str) -> str:
        async with self.session.get(path) as answer:
            return await answer.text()

    async def watch(self, path: str, seen: Any) -> None:
        """Tell of every object and its changes for ever; a watch that the server ends begins again with all objects."""
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                await self._watch_once(path, seen)
            print(f"the watch of {path} was ended and begins again", file=sys.stderr)

    async def _watch_once(self, path: str, seen: Any) -> None:
        timeout = aiohttp.ClientTimeout(total=None)
        async with self.session.get(path, params={"watch": "true"}, timeout=timeout) as answer:
            buffer = b""
            async for chunk in answer.content.iter_any():
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        return
                    seen(event["type"], event["object"], time.monotonic())


def _text(section: dict[str, str], name: str) -> str:
    return b64decode(section[f"{name}-data"]).decode() if f"{name}-data" in section else Path(section[name]).read_text()


async def writes_of(server: Server) -> dict[str, float]:
    """Writes so far by resource, without leases and nodes."""
    found: dict[str, float] = {}
    for line in (await server.text("/metrics")).splitlines():
        if line.startswith("apiserver_request_total{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if labels["verb"] in WRITES and labels["resource"] not in UNRELATED:
                if labels.get("group") in ("authorization.k8s.io", "authentication.k8s.io"):
                    continue
                sub = f"/{labels['subresource']}" if labels["subresource"] else ""
                where = f"{labels['verb']} {labels['resource']}{sub}"
                found[where] = found.get(where, 0) + float(line.rsplit(" ", 1)[1])
    return found


def difference(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    found = {name: value - before.get(name, 0) for name, value in after.items()}
    return dict(sorted(((name, value) for name, value in found.items() if value), key=lambda pair: -pair[1]))


def manifest(name: str, namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "herdsman.dev/v1alpha1",
        "kind": "ModelImport",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "source": {"volume": {"claim": "weights", "path": "llama"}},
            "workspace": {"claim": "weights", "path": f"runs/{name}"},
            "compute": {
                "nodeSelector": {"type": "herdsman-bench"},
                "tolerations": [{"key": "herdsman-bench", "operator": "Exists"}],
            },
        },
    }


def plain_job(name: str, namespace: str, like: dict[str, Any]) -> dict[str, Any]:
    pod = {**like, "volumes": [], "containers": [{**like["containers"][0], "volumeMounts": []}]}
    spec = {"backoffLimit": 0, "template": {"spec": pod}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


async def create_all(server: Server, path: str, bodies: list[dict[str, Any]], rate: float | None) -> dict[str, float]:
    """Create objects, eight at a time or `rate` a second; returns when each was created."""
    created: dict[str, float] = {}
    turns = asyncio.Semaphore(8)

    async def create(number: int, body: dict[str, Any]) -> None:
        if rate is not None:
            await asyncio.sleep(number / rate)
        async with turns:
            await server.json("POST", path, body)
            created[body["metadata"]["name"]] = time.monotonic()

    await asyncio.gather(*(create(number, body) for number, body in enumerate(bodies)))
    return created


class Operator:
    """The operator as a process."""

    def __init__(self, namespace: str, log: Path, *more: str) -> None:
        command = [sys.executable, "-m", "herdsman.kube", "--namespace", namespace, "--metrics-port", str(PORT), *more]
        self.begun = time.monotonic()
        self.process = subprocess.Popen(command, stderr=log.open("a"), stdout=subprocess.DEVNULL)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=5) as answer:
            return answer.read().decode()

    async def ready(self) -> float:
        """Wait for /readyz; returns the seconds since the start."""
        while True:
            try:
                await asyncio.to_thread(self.get, "/readyz")
                return time.monotonic() - self.begun
            except OSError:
                if self.process.poll() is not None:
                    raise RuntimeError("the operator ended") from None
                await asyncio.sleep(0.05)

    def memory(self) -> float:
        """Resident memory in MiB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024

    def cpu(self) -> float:
        """CPU seconds used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def requests(self) -> dict[str, float]:
        """The operator's own writes by verb and kind."""
        found = {}
        for line in self.get("/metrics").splitlines():
            if line.startswith("herdsman_api_requests_total{") and 'verb="GET"' not in line:
                labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
                found[f"{labels['verb']} {labels['kind']} {labels['status']}"] = float(line.rsplit(" ", 1)[1])
        return found

    def stop(self) -> float:
        begun = time.monotonic()
        self.process.terminate()
        self.process.wait(timeout=30)
        return time.monotonic() - begun


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    return {"p50": round(statistics.median(ordered) * 1000), "p95": round(p95 * 1000)}


async def measure(count: int, rate: float | None, *, keep: bool) -> dict[str, Any]:
    namespace = f"bench-{uuid.uuid4().hex[:6]}"
    kwok = subprocess.Popen(
        ["kwok", "--kubeconfig", os.environ["KUBECONFIG"], "--manage-nodes-with-annotation-selector", ANNOTATION,
         "--config", str(HERE / "operator_stages.yaml"), "--node-lease-duration-seconds", "40"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    log = Path(tempfile.gettempdir()) / f"{namespace}.log"
    operator: Operator | None = None
    try:
        prepare(namespace, -(-2 * count // PODS_A_NODE) + 1)
        async with Server() as server:
            raw = await raw_writes(server, namespace)
            operator = Operator(namespace, log)
            await operator.ready()
            found = {**await _runs(server, operator, namespace, count, rate), "raw": round(raw)}
            if rate is None:
                found["plain"] = await _plain(server, namespace, count, rate)
            found["stop"] = round(operator.stop(), 2)
            await asyncio.sleep(2)
            operator = Operator(namespace, log)
            found["restart"] = {"ready": round(await operator.ready(), 2)}
            await asyncio.sleep(20)
            found["restart"] |= {"writes": operator.requests(), "MiB": round(operator.memory()), "cpu": operator.cpu()}
            return found
    finally:
        if operator is not None and operator.process.poll() is None:
            operator.stop()
        if not keep:
            tidy(namespace)
            await asyncio.sleep(5)
        kwok.terminate()
        print(f"log of the operator: {log}", file=sys.stderr)


async def _runs(server: Server, operator: Operator, namespace: str, count: int, rate: float | None) -> dict[str, Any]:
    ours = f"/apis/herdsman.dev/v1alpha1/namespaces/{namespace}/modelimports"
    jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    at: dict[str, dict[str, float]] = {"resource": {}, "job": {}, "job done": {}, "done": {}}

    def resource_seen(_change: str, body: Any, now: float) -> None:
        at["resource"].setdefault(body["metadata"]["name"], now)
        if (body.get("status") or {}).get("phase") == "Succeeded":
            at["done"].setdefault(body["metadata"]["name"], now)

    def job_seen(_change: str, body: Any, now: float) -> None:
        name = body["metadata"]["name"].removeprefix("mi-").rpartition("-")[0]
        at["job"].setdefault(name, now)
        if any(item["type"] == "Complete" for item in (body.get("status") or {}).get("conditions") or ()):
            at["job done"].setdefault(name, now)

    watches = [
        asyncio.create_task(server.watch(ours, resource_seen)),
        asyncio.create_task(server.watch(jobs, job_seen)),
    ]
    await asyncio.sleep(1)
    before, cpu, begun = await writes_of(server), operator.cpu(), time.monotonic()
    await create_all(server, ours, [manifest(f"run-{number}", namespace) for number in range(count)], rate)
    while len(at["done"]) < count:
        if time.monotonic() - begun > PATIENCE:
            raise RuntimeError(f"only {len(at['done'])} of {count} have succeeded")
        await asyncio.sleep(0.1)
    took = time.monotonic() - begun
    await asyncio.sleep(3)
    written = difference(await writes_of(server), before)
    for watch in watches:
        watch.cancel()
    return {
        "runs": count,
        "seconds": round(took, 1),
        "a second": round(count / took, 1),
        "writes each": round(sum(written.values()) / count, 1),
        "writes": {name: round(value / count, 2) for name, value in written.items()},
        "resource -> Job, ms": spread([at["job"][name] - at["resource"][name] for name in at["job"]]),
        "Job done -> resource done, ms": spread([at["done"][name] - at["job done"][name] for name in at["done"]]),
        "cpu ms each": round((operator.cpu() - cpu) * 1000 / count, 1),
        "MiB": round(operator.memory()),
    }


async def _plain(server: Server, namespace: str, count: int, rate: float | None) -> dict[str, Any]:
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    like = (await server.json("GET", path, params={"limit": "1"}))["items"][0]["spec"]["template"]["spec"]
    done: set[str] = set()

    def job_seen(_change: str, body: Any, _now: float) -> None:
        conditions = (body.get("status") or {}).get("conditions") or ()
        if body["metadata"]["name"].startswith("plain-") and any(item["type"] == "Complete" for item in conditions):
            done.add(body["metadata"]["name"])

    watch = asyncio.create_task(server.watch(path, job_seen))
    before, begun = await writes_of(server), time.monotonic()
    await create_all(server, path, [plain_job(f"plain-{number}", namespace, like) for number in range(count)], rate)
    while len(done) < count:
        if time.monotonic() - begun > PATIENCE:
            raise RuntimeError(f"only {len(done)} of {count} plain Jobs are Complete")
        await asyncio.sleep(0.1)
    took = time.monotonic() - begun
    await asyncio.sleep(3)
    written = difference(await writes_of(server), before)
    watch.cancel()
    return {
        "seconds": round(took, 1),
        "a second": round(count / took, 1),
        "writes each": round(sum(written.values()) / count, 1),
        "writes": {name: round(value / count, 2) for name, value in written.items()},
    }


async def raw_writes(server: Server, namespace: str, count: int = 500) -> float:
    """Return how many small objects a second the API server takes, eight at a time."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    bodies = [{"metadata": {"name": f"raw-{number}", "namespace": namespace}} for number in range(count)]
    begun = time.monotonic()
    await create_all(server, path, bodies, None)
    return count / (time.monotonic() - begun)


def machine() -> str:
    """Return what the figures were measured on."""
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} cores ({models[0] if models else 'unknown'}), load {os.getloadavg()[0]:.1f} before"


async def measure_all(counts: list[int], paced: int, *, keep: bool) -> dict[str, dict[str, Any]]:
    """Measure each case after the other, the small ones first."""
    cases: dict[str, tuple[int, float | None]] = {f"{paced} at 3 a second": (paced, 3.0)} if paced else {}
    cases |= {f"{count:,} at once": (count, None) for count in sorted(counts)}
    found = {}
    for name, (count, rate) in cases.items():
        figures = await measure(count, rate, keep=keep)
        found[name] = {**figures, "goals": goals(figures, paced=rate is not None)}
        print(name, json.dumps(found[name]), file=sys.stderr)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=int, nargs="*", default=[200])
    parser.add_argument("--paced", type=int, default=0, metavar="N", help="also measure N runs at three a second")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the table and the JSON line there")
    parser.add_argument("--keep", action="store_true", help="leave the namespaces")
    given = parser.parse_args()
    where = machine()
    found = asyncio.run(measure_all(given.runs, given.paced, keep=given.keep))
    shown, line = table(found), json.dumps(found)
    print(f"{shown}\n{line}")
    if given.record:
        head = "# The operator under many runs\n\nWritten by `make bench-operator`; what is measured, and how, says "
        head += f"[operator_runs.py](operator_runs.py).\n\n{time.strftime('%Y-%m-%d')}, {where}.\n\n"
        given.record.write_text(f"{head}{shown}\n```json\n{line}\n```\n", encoding="utf-8")
    return 0 if all(met for it in found.values() for _, _, met in it["goals"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
