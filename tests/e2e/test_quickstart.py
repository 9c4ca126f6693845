"""The quickstart on a cluster, as its README says: data copied onto a claim, everything applied at once, in any order.

The steps of training are cut to a few unless HERDSMAN_WHOLE_QUICKSTART is set: what is shown here is the way, and
`make quickstart` shows what is learned.
"""

import contextlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from admission import PROJECT
from e2e_cluster import kubectl
from e2e_images import image
from e2e_operator import Namespace, Operator, eventually
from e2e_runs import reached

pytestmark = [pytest.mark.e2e, pytest.mark.images, pytest.mark.timeout(2400)]

QUICKSTART = PROJECT / "examples/quickstart"
VOLUME = PROJECT / "examples/cluster/volume.yaml"
WHOLE = bool(os.environ.get("HERDSMAN_WHOLE_QUICKSTART"))
STEPS = 4
HELD_OUT = 0.01
RUNS = {
    "modelimport": ["smollm2"],
    "tokenizermerge": ["zh-tokenizer"],
    "pretrainjob": ["zh-embeddings", "zh-pretrain"],
    "instructionset": ["zh-records"],
    "sftjob": ["zh-sft"],
    "loramerge": ["smollm2-zh"],
    "evaluation": ["zh-quality"],
}


def documents(path: Any) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def shortened(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest that trains a few steps and evaluates on little, without the thresholds that this cannot reach."""
    spec = manifest["spec"]
    if WHOLE:
        return manifest
    if (recipe := spec.get("recipe")) is not None:
        recipe.pop("epochs", None)
        recipe |= {"maxSteps": STEPS, "heldOutFraction": HELD_OUT}
    if manifest["kind"] == "Evaluation":
        spec["thresholds"] = [each for each in spec["thresholds"] if each["metric"] == "tokensPerCharacter"]
        text = next(task["perplexity"] for task in spec["tasks"] if "perplexity" in task)
        text["heldOutFraction"] = HELD_OUT
    return manifest


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Any:
    """What the quickstart trains on, brought by its own script."""
    folder = tmp_path_factory.mktemp("quickstart") / "data"
    command = [sys.executable, str(QUICKSTART / "prepare.py"), "--out", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.fixture(scope="module")
def namespace(crds, data, tmp_path_factory):
    """A namespace with the claim of examples/cluster, filled by `kubectl cp`."""
    made = Namespace(tmp_path_factory.mktemp("operator"))
    claim, pod = documents(VOLUME)
    pod["spec"]["containers"][0]["image"] = image("trainer")
    made.apply(claim, pod)
    kubectl("-n", made.name, "wait", "--for=condition=Ready", "pod/quickstart-data", "--timeout=110s")
    kubectl("cp", f"{data}/.", f"{made.name}/quickstart-data:/data")
    kubectl("-n", made.name, "delete", "pod", "quickstart-data", "--grace-period=1")
    yield made
    made.delete()


def test_the_quickstart_applied_at_once_in_random_order_ends_with_an_answer(namespace, operator):
    manifests = [shortened(item) for path in sorted(QUICKSTART.glob("*.yaml")) for item in documents(path)]
    random.shuffle(manifests)
    namespace.apply(*manifests)

    seen = progress_seen(namespace, operator, "pretrainjob", "zh-pretrain")
    for kind, names in RUNS.items():
        for name in names:
            status = reached(namespace, operator, kind, name, "Succeeded", 900)
            assert [attempt["reason"] for attempt in status["attempts"]] == ["Succeeded"]
            assert status["artifact"]["digest"]
    figures = {
        item["name"]: float(item["value"]) for item in namespace.status("tokenizermerge", "zh-tokenizer")["report"]
    }
    assert figures["tokens_per_character_after"] < figures["tokens_per_character_before"] / 2
    assert seen["totalSteps"] == (60 if WHOLE else STEPS)

    for name in ("smollm2", "smollm2-zh"):
        reached(namespace, operator, "modelserver", name, "Ready", 300)
        said = ask(namespace, name, "SQL 命令 DROP VIEW 是做什么的？")
        assert said["model"] == name
        assert said["usage"]["completion_tokens"] > 0
        assert said["choices"][0]["message"]["content"].strip()
        if WHOLE and name == "smollm2-zh":
            assert said["choices"][0]["message"]["content"].strip() == "删除一个视图。"


def progress_seen(namespace: Namespace, operator: Operator, kind: str, name: str) -> dict[str, Any]:
    """The first progress with a total that the status of a running resource tells."""

    def look() -> dict[str, Any] | None:
        status = namespace.status(kind, name)
        assert status.get("phase") not in ("Failed", "Succeeded"), f"ended without progress: {json.dumps(status)}"
        progress = status.get("progress") or {}
        return progress if status.get("phase") == "Running" and progress.get("totalSteps") else None

    return eventually(look, 900, f"{kind} {name} tells no progress", operator.log)


@contextlib.contextmanager
def forwarded(namespace: Namespace, service: str) -> Iterator[str]:
    """The URL of a Service by `kubectl port-forward`, as the README does it."""
    command = ["kubectl", "-n", namespace.name, "port-forward", f"service/{service}", ":http"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = re.search(r":(\d+) ->", process.stdout.readline())
            assert port, "kubectl port-forward did not say its port"
            yield f"http://127.0.0.1:{port[1]}"
        finally:
            process.terminate()


def ask(namespace: Namespace, server: str, question: str) -> dict[str, Any]:
    """Ask a server through its Service, greedily."""
    messages = [{"role": "user", "content": question}]
    body = {"model": server, "messages": messages, "temperature": 0, "max_tokens": 40}
    with forwarded(namespace, f"ms-{server}") as url:
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    assert answer.is_success, answer.text
    found: dict[str, Any] = answer.json()
    return found
