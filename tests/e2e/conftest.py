"""A real API server: kubectl from PATH, the cluster from KUBECONFIG; without them the tests are skipped."""

import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from admission import PROJECT
from e2e_cluster import ApiServer, kubectl
from e2e_disturbed import operating
from e2e_operator import Namespace, Operator
from e2e_runs import filled_claim


@pytest.fixture(scope="session")
def crds() -> list[str]:
    """The generated CRDs, applied and established; their names."""
    if not os.environ.get("KUBECONFIG") or not shutil.which("kubectl"):
        pytest.skip("needs a Kubernetes cluster: set KUBECONFIG and have kubectl on PATH, or use `make e2e`")
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(PROJECT / "crds"))
    names = kubectl("get", "-f", str(PROJECT / "crds"), "-o", "name").split()
    kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)
    return names


@pytest.fixture(scope="session")
def api(crds) -> Iterator[ApiServer]:
    """The API server with our CRDs and a namespace that goes with the tests."""
    proxy = subprocess.Popen(["kubectl", "proxy", "--port=0"], stdout=subprocess.PIPE, text=True)
    namespace = f"herdsman-{uuid.uuid4().hex[:8]}"
    try:
        assert proxy.stdout is not None
        port = re.search(r":(\d+)", proxy.stdout.readline())
        assert port, "kubectl proxy did not say its port"
        kubectl("create", "namespace", namespace)
        with httpx.Client(base_url=f"http://127.0.0.1:{port[1]}", timeout=30) as http:
            yield ApiServer(http, namespace)
        kubectl("delete", "namespace", namespace, "--wait=false")
    finally:
        proxy.terminate()
        proxy.wait(timeout=10)
        if proxy.stdout:
            proxy.stdout.close()


@pytest.fixture(scope="module")
def namespace(crds, tmp_path_factory) -> Iterator[Namespace]:
    """A namespace of the restricted standard, with a claim `data` that holds a tokenizer and a corpus."""
    made = Namespace(tmp_path_factory.mktemp("operator"))
    filled_claim(made, tmp_path_factory.mktemp("tokenizer"))
    yield made
    made.delete()


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    """Where the operators of a module write."""
    return tmp_path_factory.mktemp("log") / "operator.log"


@pytest.fixture(scope="module")
def operator(namespace, log) -> Iterator[Operator]:
    """An operator with a Role in that namespace and nothing else."""
    with operating(namespace, log) as running:
        yield running
