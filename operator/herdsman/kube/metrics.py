"""The operator's metrics, for Prometheus.

| metric | labels | meaning |
| --- | --- | --- |
| herdsman_queue_depth | | resources that could be worked on now |
| herdsman_queue_delayed | | resources that wait for their time |
| herdsman_queue_oldest_seconds | | how long the longest-waiting resource has waited |
| herdsman_reconcile_seconds | | how long one reconciliation took (histogram) |
| herdsman_reconcile_errors_total | class | unfinished ones: conflict, unreachable, temporary, refused, bug |
| herdsman_api_requests_total | verb, kind, status | requests to the API server; status 0 is no answer |
| herdsman_events_dropped_total | | Kubernetes Events that could not be posted |
| herdsman_resync_age_seconds | | time since everything was last listed in full |
| herdsman_loop_lag_seconds | | how late the event loop was at worst in the last minute |
| herdsman_resource_phase | namespace, kind, name, phase | 1 for the phase a resource is in |
| herdsman_resource_restarts | namespace, kind, name | restarts after faults |
| herdsman_resource_attempts | namespace, kind, name | attempts so far |
| herdsman_resource_ready_replicas | namespace, kind, name | replicas of a ModelServer that answer |
| herdsman_run_progress_ratio | namespace, kind, name | share of the work that is done, 0 to 1 |
| herdsman_run_step | namespace, kind, name | optimizer steps done |
| herdsman_run_loss | namespace, kind, name | training loss of the last step |
| herdsman_run_learning_rate | namespace, kind, name | learning rate of the last step |
| herdsman_run_tokens_per_second | namespace, kind, name | tokens trained per second, all ranks |
| herdsman_run_gpu_memory_bytes | namespace, kind, name | peak memory of rank 0's GPU |
| herdsman_run_mfu | namespace, kind, name | model FLOPs utilisation of the last step, 0 to 1; none on the CPU |
| herdsman_run_heldout_loss | namespace, kind, name | held-out loss of the last evaluation |
| herdsman_run_checkpoint_age_seconds | namespace, kind, name | time since the newest verified checkpoint |
| herdsman_run_remaining_seconds | namespace, kind, name | time to go at the present speed |
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from herdsman.api.v1alpha1.registry import KINDS
from herdsman.core.world import Key
from herdsman.kube.cache import ResourceKey, controller_uid
from herdsman.kube.shell import Shell
from herdsman.kube.trimming import Body

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
RESOURCE_LABELS = ("namespace", "kind", "name")
_FIGURES = {
    "loss": "Training loss of the last step.",
    "learning_rate": "Learning rate of the last step.",
    "gpu_memory_bytes": "Peak memory of rank 0's GPU.",
    "mfu": "Model FLOPs utilisation of the last step, 0 to 1.",
    "heldout_loss": "Held-out loss of the last evaluation.",
}
"""Figures of Progress.metrics that are metrics of their own."""
_CHECKPOINT = "checkpoint_timestamp_seconds"


class Metrics:
    """Counters and histograms of the operator itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "herdsman_reconcile_seconds",
            "How long one reconciliation took.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.errors = Counter(
            "herdsman_reconcile_errors",
            "Reconciliations that did not finish, by class.",
            ["class"],
            registry=self.registry,
        )
        self.requests = Counter(
            "herdsman_api_requests",
            "Requests to the API server; status 0 is no answer.",
            ["verb", "kind", "status"],
            registry=self.registry,
        )
        for name in ("conflict", "unreachable", "temporary", "refused", "bug"):
            self.errors.labels(name)

    def count_request(self, verb: str, kind: str, status: int) -> None:
        """Count one request to the API server."""
        self.requests.labels(verb, kind, str(status)).inc()


class ShellCollector(Collector):
    """What the queue and the cache hold just now, read when Prometheus asks."""

    def __init__(
        self, shell: Shell, figures: Callable[[], Mapping[str, float]], clock: Callable[[], float] = time.time
    ) -> None:
        self._shell = shell
        self._figures = figures
        self._clock = clock

    def collect(self) -> Iterator[Any]:
        """Return the gauges."""
        queue = self._shell.queue
        yield GaugeMetricFamily("herdsman_queue_depth", "Resources that could be worked on now.", queue.depth)
        yield GaugeMetricFamily("herdsman_queue_delayed", "Resources that wait for their time.", queue.delayed)
        yield GaugeMetricFamily(
            "herdsman_queue_oldest_seconds", "How long the longest-waiting resource has waited.", queue.oldest_wait()
        )
        yield GaugeMetricFamily(
            "herdsman_events_dropped_total", "Events that could not be posted.", self._shell.recorder.dropped
        )
        for name, value in self._figures().items():
            yield GaugeMetricFamily(name, _FIGURE_HELP[name], value)
        yield from self._resources()

    def _resources(self) -> Iterator[GaugeMetricFamily]:
        families = {name: GaugeMetricFamily(name, text, labels=labels) for name, (text, labels) in _GAUGES.items()}
        for body in self._shell.cache.all_resources():
            labels = (body["metadata"]["namespace"], body["kind"], body["metadata"]["name"])
            status = body.get("status") or {}
            families["herdsman_resource_phase"].add_metric([*labels, status.get("phase") or "Pending"], 1)
            for name, value in self._values(body, status):
                families[name].add_metric(labels, value)
        yield from families.values()

    def _values(self, body: Body, status: Body) -> Iterator[tuple[str, float]]:
        if KINDS[body["kind"]].serves:
            yield "herdsman_resource_ready_replicas", status.get("readyReplicas") or 0
            return
        yield "herdsman_resource_restarts", status.get("restarts") or 0
        yield "herdsman_resource_attempts", len(status.get("attempts") or ())
        progress = self._live(body) if status.get("phase") == "Running" else None
        progress = progress or status.get("progress") or {}
        figures = {item["name"]: item["value"] for item in progress.get("metrics") or ()}
        if progress:
            yield "herdsman_run_progress_ratio", (progress.get("percent") or 0) / 100
            yield "herdsman_run_step", progress.get("step") or 0
        for member, name in _MEMBERS.items():
            if progress.get(member) is not None:
                yield name, progress[member]
        for figure in _FIGURES:
            if (value := _number(figures.get(figure))) is not None:
                yield f"herdsman_run_{figure}", value
        if (stamp := _number(figures.get(_CHECKPOINT))) is not None:
            yield "herdsman_run_checkpoint_age_seconds", max(0.0, self._clock() - stamp)

    def _live(self, body: Body) -> Body | None:
        """Return what the newest running Job last said, which is fresher than the status."""
        metadata = body["metadata"]
        parent = ResourceKey(metadata["namespace"], Key(body["kind"], metadata["name"]))
        jobs = self._shell.cache.children(parent, "Job")
        mine = [job for job in jobs if controller_uid(job) == metadata["uid"]]
        reports = (self._shell.live.newest(job["metadata"]["uid"]) for job in reversed(mine))
        found = next((report.progress for report in reports if report is not None and report.progress), None)
        return found.to_json() if found is not None else None


_MEMBERS = {
    "tokensPerSecond": "herdsman_run_tokens_per_second",
    "estimatedRemainingSeconds": "herdsman_run_remaining_seconds",
}
_FIGURE_HELP = {
    "herdsman_resync_age_seconds": "Time since everything was last listed in full.",
    "herdsman_loop_lag_seconds": "How late the event loop was at worst in the last minute.",
}
_GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "herdsman_resource_phase": ("1 for the phase a resource is in.", (*RESOURCE_LABELS, "phase")),
    "herdsman_resource_restarts": ("Restarts after faults.", RESOURCE_LABELS),
    "herdsman_resource_attempts": ("Attempts so far.", RESOURCE_LABELS),
    "herdsman_resource_ready_replicas": ("Replicas of a ModelServer that answer.", RESOURCE_LABELS),
    "herdsman_run_progress_ratio": ("Share of the work that is done, 0 to 1.", RESOURCE_LABELS),
    "herdsman_run_step": ("Optimizer steps done.", RESOURCE_LABELS),
    "herdsman_run_tokens_per_second": ("Tokens trained per second, all ranks.", RESOURCE_LABELS),
    "herdsman_run_remaining_seconds": ("Time to go at the present speed.", RESOURCE_LABELS),
    "herdsman_run_checkpoint_age_seconds": ("Time since the newest verified checkpoint.", RESOURCE_LABELS),
    **{f"herdsman_run_{name}": (text, RESOURCE_LABELS) for name, text in _FIGURES.items()},
}


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
