"""One run that is disturbed in many ways, and what must hold of it afterwards."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from e2e_images import image
from e2e_operator import Namespace, Operator, eventually
from e2e_runs import base, reached, training

EVERY = 10
RECIPE = {"maxSteps": 600, "checkpoints": {"everySteps": EVERY, "keepLast": 2}, "lora": {"rank": 2, "dropout": 0.1}}


def started(namespace: Namespace, log: Path, *more: str) -> Operator:
    """The operator with the images of this state of the project."""
    return Operator(namespace, log, "--trainer-image", image("trainer"), "--server-image", image("server"), *more)


@contextlib.contextmanager
def operating(namespace: Namespace, log: Path, *more: str) -> Iterator[Operator]:
    """An operator that is ready, and must not have met a bug by the end."""
    running = started(namespace, log, *more).ready()
    try:
        yield running
    finally:
        running.stop()
    assert "Traceback" not in log.read_text(), log.read_text()[-3000:]


def undisturbed_digest(namespace: Namespace, operator: Operator) -> str:
    """The digest of what the run publishes when nothing happens to it."""
    namespace.apply(base(), training("undisturbed", recipe=RECIPE))
    status = reached(namespace, operator, "pretrainjob", "undisturbed", "Succeeded", 300)
    assert len(status["attempts"]) == 1
    return str(status["artifact"]["digest"])


def pods_of(namespace: Namespace, name: str) -> list[dict[str, Any]]:
    return namespace.all("pods", "-l", f"herdsman.dev/name={name}")


def at_work(namespace: Namespace, operator: Operator, name: str) -> dict[str, Any]:
    """Start a run of this name and wait until it has saved something; returns its status then."""
    namespace.apply(training(name, recipe=RECIPE))

    def saved() -> dict[str, Any] | None:
        status = namespace.status("pretrainjob", name)
        return status if status.get("checkpoint", {}).get("step", 0) >= EVERY else None

    found: dict[str, Any] = eventually(saved, 180, f"{name} has saved nothing", operator.log)
    assert found["phase"] == "Running", "it was over before it could be disturbed: give RECIPE more steps"
    return found


def ended_like(namespace: Namespace, operator: Operator, name: str, undisturbed: str) -> list[dict[str, Any]]:
    """Wait for the end of a run and check what must hold after every disturbance; returns its attempts."""
    status = reached(namespace, operator, "pretrainjob", name, "Succeeded", 400)
    assert status["artifact"]["digest"] == undisturbed
    attempts: list[dict[str, Any]] = status["attempts"]
    jobs = sorted(job["metadata"]["name"] for job in namespace.all("jobs", "-l", f"herdsman.dev/name={name}"))
    assert jobs == sorted(f"pj-{name}-{attempt['number']}" for attempt in attempts), "a Job too many or too few"
    steps = [attempt.get("resumedFromStep", 0) for attempt in attempts]
    assert steps == sorted(steps), "the newest checkpoint went back"
    assert not [pod for pod in pods_of(namespace, name) if pod["metadata"].get("deletionTimestamp")]
    return attempts
