"""Weights in and out on a real cluster: fetched over HTTP with a token, kept by content, and served from GGUF."""

import json
import time

import pytest

from e2e_cluster import kubectl
from e2e_operator import API, eventually
from e2e_runs import SMALL, base, on_claim, place, python_pod, reached, succeeded

pytestmark = [pytest.mark.e2e, pytest.mark.images, pytest.mark.timeout(1800)]

SERVE = """
import http.server, os
os.chdir("/data/runs/base/artifact")
http.server.test(http.server.SimpleHTTPRequestHandler, port=8080)
"""
"""Files of ModelImport/base over HTTP; its log names every request."""
INODES = (
    "import os; print([os.stat(f'/data/runs/{n}/artifact/model.safetensors').st_ino for n in ('fetched', 'again')])"
)


@pytest.fixture(scope="module")
def web(namespace, operator):
    """A web server with a model's files: their URLs and digests."""
    namespace.apply(base())
    reached(namespace, operator, "modelimport", "base", "Succeeded")
    pod = python_pod("web", SERVE, {"data": ("/data", on_claim("data"))})
    pod["metadata"]["labels"] = {"app": "web"}
    pod["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
    service = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}
    namespace.apply(pod, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": service})
    kubectl("-n", namespace.name, "wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
    path = f"/api/v1/namespaces/{namespace.name}/pods/web:8080/proxy/herdsman-artifact.json"
    files = eventually(lambda: json.loads(kubectl("get", "--raw", path)), 30, "the web server does not answer")["files"]
    return [{"url": f"http://web/{name}", "sha256": file["sha256"]} for name, file in sorted(files.items())]


def fetching(name, files, **source):
    spec = {"source": {"http": {"files": files, **source}}, "compute": SMALL, "workspace": place(name)}
    return {**API, "kind": "ModelImport", "metadata": {"name": name}, "spec": spec}


def test_a_model_comes_over_http_once_and_a_missing_token_is_told(namespace, operator, web):
    begun = time.monotonic()
    namespace.apply(fetching("fetched", web, token={"name": "web-token", "key": "token"}))
    failure = eventually(
        lambda: namespace.status("modelimport", "fetched").get("failure"), 30, "no cause", operator.log
    )
    assert time.monotonic() - begun < 15
    assert (failure["reason"], "web-token" in failure["message"]) == ("SecretNotFound", True)
    secret = {"metadata": {"name": "web-token"}, "stringData": {"token": "let-me-in"}}
    namespace.apply({"apiVersion": "v1", "kind": "Secret", **secret})
    fetched = reached(namespace, operator, "modelimport", "fetched", "Succeeded", 180)
    namespace.apply(fetching("again", web))
    again = reached(namespace, operator, "modelimport", "again", "Succeeded", 180)
    assert fetched["artifact"]["digest"] == again["artifact"]["digest"]

    log = kubectl("-n", namespace.name, "logs", "web")
    assert log.count("GET /model.safetensors ") == 1, log
    namespace.apply(python_pod("inodes", INODES, {"data": ("/data", on_claim("data"))}))
    succeeded(namespace, "inodes")
    first, second = json.loads(kubectl("-n", namespace.name, "logs", "inodes"))
    assert first == second, "the second import links what the first has fetched"


def test_what_is_not_what_the_spec_says_fails_for_good(namespace, operator, web):
    wrong = [{**web[0], "sha256": "0" * 64}, *web[1:]]
    namespace.apply(fetching("wrong", wrong))
    failure = reached(namespace, operator, "modelimport", "wrong", "Failed", 180)["failure"]
    assert failure["reason"] == "ChecksumMismatch"
    assert web[0]["sha256"] in failure["message"]


def test_a_model_is_written_as_gguf_and_served_by_llama_cpp(namespace, operator, web):
    outputs = {"gguf": [{"type": "Q8_0"}, {"type": "F16"}], "ollama": {}}
    merge = {"model": {"modelImport": "base"}, "outputs": outputs, "template": "alpaca", "compute": SMALL}
    server = {"model": {"loraMerge": "small"}, "compute": SMALL}
    namespace.apply(
        {**API, "kind": "LoRAMerge", "metadata": {"name": "small"}, "spec": {**merge, "workspace": place("small")}},
        {**API, "kind": "ModelServer", "metadata": {"name": "small"}, "spec": server},
        {**API, "kind": "SFTJob", "metadata": {"name": "tuned"}, "spec": {
            "model": {"loraMerge": "small"}, "dataset": {"volume": {"claim": "data", "path": "corpus.txt"}},
        }},
    )  # fmt: skip
    status = reached(namespace, operator, "loramerge", "small", "Succeeded", 180)
    assert status["artifact"]["formats"] == ["gguf"]
    reached(namespace, operator, "modelserver", "small", "Ready", 180)
    path = f"/api/v1/namespaces/{namespace.name}/services/ms-small:8000/proxy/v1/models"
    assert json.loads(kubectl("get", "--raw", path))["data"][0]["id"] == "small"
    refused = eventually(
        lambda: [
            item["message"]
            for item in namespace.status("sftjob", "tuned").get("conditions", ())
            if item["reason"] == "ArtifactMismatch"
        ],
        30,
        "nothing says that a GGUF file cannot be trained",
        operator.log,
    )
    assert "outputs.huggingface" in refused[0]
