"""The command line over a home with a fake interpreter."""

import subprocess
import sys

import pytest

from herdsman.cli import main
from shells.homes import Play
from waiting import wait_until


class CommandLine(Play):
    """Calls `herdsman` in this process, or in one of its own."""

    def __init__(self, directory, capsys):
        super().__init__(directory)
        self._capsys = capsys

    def __call__(self, *arguments):
        """Run a command; return its exit code, its output and its errors."""
        sys.argv = ["herdsman", *map(str, arguments)]
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        out, err = self._capsys.readouterr()
        return code, out, err

    def start(self, *arguments):
        """Start a command in a process of its own."""
        command = [sys.executable, "-c", "from herdsman.cli import main; main()", *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def manifests(self, *manifests):
        """Write manifests with the volume they read, and return the arguments that name both."""
        return [self.write(*manifests), "--volume", f"corpora={self.texts}"]


@pytest.fixture
def herdsman(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("FAKE_PLAN", raising=False)
    monkeypatch.setattr(sys, "argv", [])
    line = CommandLine(tmp_path, capsys)
    monkeypatch.setenv("HERDSMAN_HOME", str(line.home.root))
    monkeypatch.setenv("HERDSMAN_PYTHON", str(line.python))
    monkeypatch.setenv("COLUMNS", "200")
    (line.home.root / "home.json").unlink()
    yield line
    if line.home.jobs.exists():
        line.cluster.kill()
        wait_until(lambda: not line.cluster.running_jobs(), "all processes have ended")
    for server in line.cluster.servers.records():
        line.cluster.servers.kill(server)
