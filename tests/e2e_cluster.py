"""How the tests talk to a real API server: kubectl, and its proxy for answers with the paths of the wrong fields."""

import contextlib
import fcntl
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx


def kubectl(*arguments: str) -> str:
    """Run kubectl and return what it prints; a failure tells what it said."""
    ran = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, f"kubectl {' '.join(arguments)}: {ran.stderr}"
    return ran.stdout


@contextlib.contextmanager
def crds_to_oneself() -> Iterator[None]:
    """Let no other process of these tests change the CRDs meanwhile, of which a cluster has one set.

    Argo CD would heal what an older chart has installed, and be told of changes that nobody made in its repository.
    """
    with (Path(tempfile.gettempdir()) / "herdsman-e2e-crds.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class ApiServer:
    """The API server behind `kubectl proxy`, and a namespace of these tests in it."""

    http: httpx.Client
    namespace: str

    def path(self, plural: str, name: str = "") -> str:
        return f"/apis/herdsman.dev/v1alpha1/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def create(self, plural: str, manifest: dict[str, Any], *, dry_run: bool = True) -> httpx.Response:
        return self.http.post(self.path(plural), json=manifest, params=_parameters(dry_run=dry_run))

    def update(self, plural: str, manifest: dict[str, Any]) -> httpx.Response:
        name = manifest["metadata"]["name"]
        return self.http.put(self.path(plural, name), json=manifest, params=_parameters(dry_run=True))

    def patch(self, plural: str, name: str, change: dict[str, Any], subresource: str) -> httpx.Response:
        headers = {"Content-Type": "application/merge-patch+json"}
        return self.http.patch(f"{self.path(plural, name)}/{subresource}", json=change, headers=headers)


def _parameters(*, dry_run: bool) -> dict[str, str]:
    return {"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
