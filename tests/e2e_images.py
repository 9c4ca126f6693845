"""Builds the images for the tests on a cluster, once per state of the project's files, and says what they are called.

An image that exists already is given by its name: HERDSMAN_TRAINER_IMAGE=registry.example/herdsman/trainer:1. Without
it, the test cluster's tool builds it, and the tag is the digest of what goes into it.
"""

import fcntl
import hashlib
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
TEST_CLUSTER = Path(os.environ.get("HERDSMAN_TEST_CLUSTER", PROJECT.parent / "shared" / "cluster" / "cluster"))
BASE = "localhost/python:3.11-slim-bookworm"
SOURCES = (".dockerignore", "LICENSE", "README.md", "pyproject.toml", "operator", "trainer", "images/requirements")


@cache
def image(name: str) -> str:
    """Return the reference of an image (operator, trainer or server) that the cluster's nodes have, or can pull."""
    if given := os.environ.get(f"HERDSMAN_{name.upper()}_IMAGE"):
        return given
    if not TEST_CLUSTER.is_file():
        pytest.skip(f"needs the image: set HERDSMAN_{name.upper()}_IMAGE, or HERDSMAN_TEST_CLUSTER to what builds it")
    tag = f"localhost/herdsman/{name}:{_digest(name)}"
    with (Path(tempfile.gettempdir()) / "herdsman-image-build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tool keeps the image it builds in one file
        if tag not in _on_node():
            _run([str(TEST_CLUSTER), "base-image"])
            arguments = ["--build-arg", f"BASE={BASE}", "-f", f"images/{name}/Dockerfile", "."]
            _run([str(TEST_CLUSTER), "build", tag, *arguments])
    return tag


def parts(reference: str) -> dict[str, str]:
    """An image's reference as the chart's values."""
    name, _, tag = reference.rpartition(":")
    registry, _, repository = name.partition("/")
    return {"registry": registry, "repository": repository, "tag": tag}


def _digest(name: str) -> str:
    recipe = (f"images/{name}/Dockerfile", "images/operator/trim.py")
    listed = _run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *SOURCES, *recipe])
    total = hashlib.sha256()
    for path in sorted(PROJECT / line for line in listed.splitlines()):
        if path.is_file():
            total.update(f"{path.relative_to(PROJECT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:12]


def _on_node() -> set[str]:
    """The images on the node; none where its containerd is not at hand."""
    if "CONTAINERD_ADDRESS" not in os.environ:
        return set()
    return set(_run(["ctr", "images", "ls", "-q"]).split())


def _run(argv: list[str]) -> str:
    ran = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, timeout=3600)
    assert ran.returncode == 0, f"{' '.join(argv)}: {ran.stdout[-3000:]}{ran.stderr[-3000:]}"
    return ran.stdout
