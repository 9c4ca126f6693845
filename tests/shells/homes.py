"""A home with a fake interpreter, and what tests do in it."""

import asyncio
import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import yaml

from builders import manifest
from herdsman.local.cluster import LocalCluster
from herdsman.local.follow import Follower, with_inputs
from herdsman.local.home import Home, local_site
from herdsman.local.machine import Machine
from herdsman.local.manifests import load_manifests

FAKE = Path(__file__).with_name("fake_trainer.py")
CORPORA = {"volume": {"claim": "corpora", "path": "zh"}}
SECONDS = 20


def fake_interpreter(directory):
    """An executable that stands for python in pods; it starts in a moment."""
    path = directory / "fake-python"
    if not path.exists():
        path.write_text(f"#!{sys.executable} -IS\n{FAKE.read_text()}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def model_import(name="base", **spec):
    return manifest("ModelImport", name, {"source": {"volume": {"claim": "corpora", "path": name}}, **spec})


def pretrain(name="zh", **spec):
    return manifest("PretrainJob", name, {"model": {"modelImport": "base"}, "dataset": CORPORA, **spec})


def server(name="chat", **spec):
    return manifest("ModelServer", name, {"model": {"modelImport": "base"}, **spec})


class Listening:
    """Remembers what it hears."""

    def __init__(self):
        self.heard = []
        self.sentences = []

    def changed(self, key, status):
        self.heard.append((key.name, str(status.phase)))

    def said(self, sentence):
        self.sentences.append(sentence)

    def looked(self):
        pass


class Play:
    """A home in a temporary directory."""

    def __init__(self, directory, cores=2, gpus=0):
        self.directory = directory
        self.home = Home(directory / "home")
        self.machine = Machine(cores, gpus)
        self.python = fake_interpreter(directory)
        self.behaviours = directory / "behaviours.json"
        self.behave()
        os.environ["FAKE_PLAN"] = str(self.behaviours)
        self.texts = directory / "texts"
        (self.texts / "zh").mkdir(parents=True, exist_ok=True)
        self.listener = Listening()
        self.cluster = self.fresh_cluster()

    def fresh_cluster(self):
        """The home as a new `herdsman run` sees it."""
        self.home.create()
        self.cluster = LocalCluster(self.home, self.machine)
        return self.cluster

    def behave(self, **attempts):
        """Say what the attempts of resources do."""
        self.behaviours.write_text(json.dumps(attempts))

    def write(self, *manifests, name="all.yaml"):
        path = self.directory / "manifests" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump_all(manifests))
        return path

    def apply(self, *manifests, corpora=True):
        """Apply manifests as `herdsman run` does, and return what each one's application was."""
        if corpora:
            self.cluster.volumes.remember({"corpora": self.texts})
        found = load_manifests([self.write(*manifests)])
        assert not found.problems, found.problems
        applications = self.cluster.store.compare(found.resources.values(), self.cluster.now())
        self.cluster.store.commit(applications)
        return {application.key.name: application for application in applications}

    def follower(self):
        site = replace(local_site(self.home), python=str(self.python))
        return Follower(self.cluster, site, with_inputs(self.cluster.store.all(), self.cluster), self.listener)

    def follow(self):
        """Follow everything to its end."""
        return asyncio.run(asyncio.wait_for(self.follower().run(), SECONDS))

    def follow_while(self, script):
        """Follow everything, while `script(follower)` runs beside it."""

        async def both():
            follower = self.follower()
            ending = asyncio.create_task(follower.run())
            await asyncio.wait_for(script(follower), SECONDS)
            return await asyncio.wait_for(ending, SECONDS)

        return asyncio.run(both())

    def workspace(self, kind_plural, name, claim):
        return self.home.volumes / claim / kind_plural / name

    def pretrain_dir(self, name="zh"):
        return self.workspace("pretrainjobs", name, f"pj-{name}")

    def import_dir(self, name="base"):
        return self.workspace("modelimports", name, f"mi-{name}")

    def run(self, *manifests, **options):
        """Apply and follow to the end; return phases by name."""
        self.apply(*manifests, **options)
        return phases(self.follow())


def phases(ending):
    return {key.name: str(status.phase) for key, status in ending.statuses.items()}


def status_of(ending, name):
    return next(status for key, status in ending.statuses.items() if key.name == name)


async def until(condition, what):
    """Poll a condition without blocking the loop; SECONDS at most, by follow_while."""
    while not condition():
        await asyncio.sleep(0.01)


def release(*workspaces):
    """Let runs that hold go on."""
    for workspace in workspaces:
        (workspace / "release").touch()
