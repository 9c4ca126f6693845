"""Controllers of Jobs, Deployments and autoscaling, and kubelets in memory; a step moves all on by one state."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import builders
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.core import names, volumes
from kube.fake_api import FakeApi

Body = dict[str, Any]


class End(NamedTuple):
    """How a pod ends."""

    code: int = 0
    message: str | None = None
    """None: what a good trainer says."""
    reason: str | None = None
    condition: Mapping[str, str] | None = None


Script = Callable[[Body, int], End | None]
"""From a Job and a pod's index to the pod's end; None lets it run on."""


def succeed(_job: Body, _index: int) -> End | None:
    return End()


def run_on(_job: Body, _index: int) -> End | None:
    return None


class FakePlatform:
    """Controllers over a FakeApi."""

    def __init__(self, api: FakeApi, script: Script = succeed):
        self.api, self.script = api, script
        self.started: list[tuple[str, int]] = []
        """(Job's uid, index) of every pod that was made."""

    def step(self) -> bool:
        """Move every Job and Deployment on by one state; returns whether anything moved."""
        version = self.api._version
        for job in self.api.of("Job"):
            if "template" in job["spec"]:
                self._job(job)
        for scaler in self.api.of("HorizontalPodAutoscaler"):
            self._scale(scaler)
        for deployment in self.api.of("Deployment"):
            self._roll_out(deployment)
        for claim in self.api.of("PersistentVolumeClaim"):
            self.status(claim, phase="Bound", accessModes=claim["spec"]["accessModes"])
        return self.api._version != version

    def pods(self, job: Body) -> list[Body]:
        uid = job["metadata"]["uid"]
        return [pod for pod in self.api.of("Pod") if pod["metadata"]["ownerReferences"][0]["uid"] == uid]

    def status(self, body: Body, **status: Any) -> None:
        metadata = body["metadata"]
        self.api.change(body["kind"], metadata["namespace"], metadata["name"], {"status": status})

    def _job(self, job: Body) -> None:
        pods, status = self.pods(job), job.get("status") or {}
        if any(
            item["type"] in ("Complete", "Failed") and item["status"] == "True" for item in status.get("conditions", ())
        ):
            return
        if job["spec"].get("suspend"):
            for pod in pods:
                self.api.remove("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])
            if not status.get("conditions"):
                self.status(job, conditions=[{"type": "Suspended", "status": "True"}], active=0, startTime=None)
            return
        if not pods:
            self.status(job, startTime=self.api.stamp(), active=job["spec"]["parallelism"], conditions=[])
            for index in range(job["spec"]["completions"]):
                self._make_pod(job, index)
            return
        for pod in pods:
            self._pod(job, pod)
        self._finish(job)

    def _make_pod(self, job: Body, index: int) -> None:
        metadata, template = job["metadata"], job["spec"]["template"]
        self.started.append((metadata["uid"], index))
        labels = template["metadata"]["labels"]
        index_label, job_label = "batch.kubernetes.io/job-completion-index", "batch.kubernetes.io/job-name"
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
        self.api.add(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"{metadata['name']}-{index}-{len(self.started):05d}",
                    "namespace": metadata["namespace"],
                    "labels": {**labels, index_label: str(index), job_label: metadata["name"]},
                    "ownerReferences": [{**owner, "controller": True}],
                },
                "spec": template["spec"],
                "status": {"phase": "Pending"},
            }
        )

    def _pod(self, job: Body, pod: Body) -> None:
        index = int(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"])
        if pod["status"]["phase"] == "Pending":
            running = {"running": {"startedAt": self.api.stamp()}}
            statuses = [{"name": "trainer", "state": running, "ready": True}]
            self.status(pod, phase="Running", podIP="10.0.0.1", containerStatuses=statuses)
        elif pod["status"]["phase"] == "Running" and (end := self.script(job, index)) is not None:
            self.end(pod, end)

    def end(self, pod: Body, end: End) -> None:
        """End a running pod."""
        message = end.message if end.message is not None else self._last_words(pod) if end.code == 0 else ""
        ended = {
            "exitCode": end.code,
            "reason": end.reason or ("Completed" if end.code == 0 else "Error"),
            "message": message,
            "startedAt": self.api.stamp(),
            "finishedAt": self.api.stamp(),
        }
        self.status(
            pod,
            phase="Succeeded" if end.code == 0 else "Failed",
            containerStatuses=[{"name": "trainer", "state": {"terminated": ended}}],
            conditions=[dict(end.condition)] if end.condition else [],
        )

    def _finish(self, job: Body) -> None:
        phases = [pod["status"]["phase"] for pod in self.pods(job)]
        stamp = self.api.stamp()
        if "Failed" in phases:
            for pod in self.pods(job):
                if pod["status"]["phase"] in ("Pending", "Running"):
                    self.api.remove("Pod", pod["metadata"]["namespace"], pod["metadata"]["name"])
            condition = {
                "type": "Failed",
                "status": "True",
                "reason": "BackoffLimitExceeded",
                "lastTransitionTime": stamp,
            }
            self.status(job, active=0, failed=phases.count("Failed"), conditions=[condition])
        elif all(phase == "Succeeded" for phase in phases):
            condition = {"type": "Complete", "status": "True", "lastTransitionTime": stamp}
            self.status(job, active=0, succeeded=len(phases), completionTime=stamp, conditions=[condition])

    def _last_words(self, pod: Body) -> str:
        labels = pod["metadata"]["labels"]
        kind, name = labels[names.LABEL_KIND], labels[names.LABEL_NAME]
        parent = self.api.objects[kind, pod["metadata"]["namespace"], name]
        resource = KINDS[kind].model.parse(json.dumps(parent))
        place = volumes.writes(resource)
        made = builders.artifact(resource, claim=place.claim, path=f"{place.path}/artifact")
        return builders.said("Succeeded", artifact=made).to_bytes().decode()

    def _scale(self, scaler: Body) -> None:
        """Keep the number of replicas within the bounds, as long as it is not 0."""
        spec, where = scaler["spec"], (scaler["metadata"]["namespace"], scaler["spec"]["scaleTargetRef"]["name"])
        there = self.api.objects["Deployment", *where]["spec"]["replicas"]
        wanted = min(max(there, spec["minReplicas"]), spec["maxReplicas"])
        if there and wanted != there:
            self.api.change("Deployment", *where, {"spec": {"replicas": wanted}})

    def _roll_out(self, deployment: Body) -> None:
        wanted, generation = deployment["spec"].get("replicas", 1), deployment["metadata"]["generation"]
        counts = dict.fromkeys(("replicas", "readyReplicas", "updatedReplicas", "availableReplicas"), wanted)
        self.status(deployment, observedGeneration=generation, **counts)
