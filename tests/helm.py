"""Renders the chart as Helm does; where there is no helm, the tests that need it are skipped."""

import functools
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from admission import PROJECT

CHART = PROJECT / "charts" / "herdsman"
KUBERNETES = "1.34.0"
MONITORING = "monitoring.coreos.com/v1"


def executable(name: str) -> str:
    """The program from its environment variable (HELM, PROMTOOL) or PATH; a test that needs it is skipped without."""
    found = os.environ.get(name.upper()) or shutil.which(name)
    if not found:
        pytest.skip(f"needs {name}: put it on PATH, or set {name.upper()} to it")
    return found


def helm(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm and return how it ended."""
    argv = [executable("helm"), *arguments]
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=240, check=False)


@dataclass(frozen=True)
class Rendered:
    """The objects of a release named `release` in the namespace `home`."""

    objects: tuple[dict[str, Any], ...]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [body for body in self.objects if body["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> dict[str, Any]:
        found = [body for body in self.of(kind) if name is None or body["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} objects {kind} {name or ''}"
        return found[0]

    @property
    def pod(self) -> dict[str, Any]:
        return self.one("Deployment")["spec"]["template"]["spec"]

    @property
    def container(self) -> dict[str, Any]:
        return self.pod["containers"][0]


def render(values: dict[str, Any] | None = None, *, apis: tuple[str, ...] = ()) -> Rendered:
    """The chart's objects with these values on a cluster that also has these API versions."""
    return _render(json.dumps(values or {}, sort_keys=True), apis)


def refusal(values: dict[str, Any]) -> str:
    """What helm says of values that it refuses."""
    ended = _template(json.dumps(values), ())
    assert ended.returncode != 0, "helm accepted the values"
    return ended.stderr


@functools.cache
def _render(values: str, apis: tuple[str, ...]) -> Rendered:
    ended = _template(values, apis)
    assert ended.returncode == 0, ended.stderr
    return Rendered(tuple(body for body in yaml.load_all(ended.stdout, yaml.CSafeLoader) if body))


def _template(values: str, apis: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    more = [part for api in apis for part in ("--api-versions", api)]
    options = ["--namespace", "home", "--kube-version", KUBERNETES, "--values", "-", *more]
    return helm("template", "release", str(CHART), *options, stdin=values)


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
