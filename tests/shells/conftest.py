"""A home for each test, and no process left behind."""

import pytest

from shells.homes import Play
from waiting import wait_until


@pytest.fixture
def play(tmp_path, monkeypatch):
    monkeypatch.delenv("FAKE_PLAN", raising=False)
    home = Play(tmp_path)
    yield home
    home.cluster.kill()
    for server in home.cluster.servers.records():
        home.cluster.servers.kill(server)
    wait_until(lambda: not home.cluster.running_jobs(), "all processes have ended")
