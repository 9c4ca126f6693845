"""The plain manifests are the chart's, and kubectl can put them together."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from admission import PROJECT
from helm import executable, text
from herdsman.api.v1alpha1.registry import KINDS

KUSTOMIZE = PROJECT / "deploy" / "kustomize"


def test_the_plain_manifests_are_what_the_chart_renders(tmp_path):
    environment = {**os.environ, "HELM": executable("helm")}
    subprocess.run([str(PROJECT / "deploy/render"), str(tmp_path)], check=True, env=environment, timeout=120)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.yaml"))
    assert written == [Path("all-namespaces/herdsman.yaml"), Path("namespaced/herdsman.yaml")]
    different = [str(path) for path in written if text(tmp_path / path) != text(KUSTOMIZE / path)]
    assert different == [], "run deploy/render and commit the result"


@pytest.mark.parametrize(("directory", "role"), [(".", "Role"), ("all-namespaces", "ClusterRole")])
def test_kubectl_puts_them_together(directory, role):
    argv = [executable("kubectl"), "kustomize", str(KUSTOMIZE / directory)]
    made = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120).stdout
    bodies = [body for body in yaml.load_all(made, yaml.CSafeLoader) if body]
    kinds = [body["kind"] for body in bodies]
    assert kinds.count("CustomResourceDefinition") == len(KINDS)
    assert kinds.count("Namespace") == kinds.count("Deployment") == 1
    assert f"{role}Binding" in kinds
    assert ("ClusterRoleBinding" in kinds) is (role == "ClusterRole")
    placed = [body["metadata"]["namespace"] for body in bodies if "namespace" in body["metadata"]]
    assert set(placed) == {"herdsman"}
