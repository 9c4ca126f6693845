"""The plugin against an API server in memory, with a kubeconfig that leads to it."""

import sys

import pytest
import yaml

from herdsman.kubectl import main
from kubectl.stub_cluster import StubCluster


class Plugin:
    """Calls `kubectl herdsman` in this process."""

    def __init__(self, directory, capsys):
        self.directory = directory
        self._capsys = capsys

    def __call__(self, *arguments):
        """Run a command; return its exit code, its output and its errors."""
        sys.argv = ["kubectl-herdsman", *map(str, arguments)]
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    def write(self, *manifests):
        """Write manifests into a file and return its path."""
        path = self.directory / "manifests.yaml"
        path.write_text(yaml.safe_dump_all(manifests))
        return path


@pytest.fixture
def cluster():
    with StubCluster() as stub:
        yield stub


@pytest.fixture
def plugin(cluster, tmp_path, monkeypatch, capsys):
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "stub", "cluster": {"server": cluster.address}}],
        "users": [{"name": "me", "user": {"token": "secret"}}],
        "contexts": [
            {"name": "here", "context": {"cluster": "stub", "user": "me", "namespace": "team"}},
            {"name": "plain", "context": {"cluster": "stub", "user": "me"}},
        ],
    }
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setattr(sys, "argv", [])
    for module in ("get", "following", "suspending", "top"):
        monkeypatch.setattr(f"herdsman.kubectl.{module}.LOOK_SECONDS", 0.01)
    return Plugin(tmp_path, capsys)
