"""The home: the directory in which one machine keeps its resources, runs, servers and volumes."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from herdsman.core.site import Site
from herdsman.local.json_files import read_object, write_json

DEFAULT_HOME = ".herdsman"
HOME_VARIABLE = "HERDSMAN_HOME"
PYTHON_VARIABLE = "HERDSMAN_PYTHON"
"""The interpreter that has the trainer and the server installed, where it is not this one."""
FORMAT = 1
"""The layout of the home; a newer one is refused."""
MASTER_PORTS = range(29400, 29500)
"""Where rank 0 of a run of several processes listens, on the loopback interface."""


class HomeRefused(Exception):
    """The home cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Home:
    """The places in a home; nothing is created by asking for them."""

    root: Path

    @classmethod
    def at(cls, given: str | None, environment: Mapping[str, str] = os.environ) -> "Home":
        """Return the home that --home names, or else HERDSMAN_HOME, or else .herdsman in this directory."""
        return cls(Path(given or environment.get(HOME_VARIABLE) or DEFAULT_HOME).absolute())

    @property
    def exists(self) -> bool:
        """Whether anything was ever applied here."""
        return (self.root / "home.json").is_file()

    @property
    def resources(self) -> Path:
        """<Kind>/<name>.json: what was applied."""
        return self.root / "resources"

    @property
    def statuses(self) -> Path:
        """<Kind>/<name>.json: what is known about it."""
        return self.root / "status"

    @property
    def history(self) -> Path:
        """<Kind>/<name>.jsonl: what happened to it, one line a change."""
        return self.root / "history"

    @property
    def configs(self) -> Path:
        """<ConfigMap>.json: what a run or a server reads."""
        return self.root / "configs"

    @property
    def jobs(self) -> Path:
        """<Job>/: the record, the processes and the logs of one attempt."""
        return self.root / "jobs"

    @property
    def servers(self) -> Path:
        """<Deployment>/: the record, the process and the log of a server."""
        return self.root / "servers"

    @property
    def volumes(self) -> Path:
        """<claim>/: a volume, as a directory or a link to one."""
        return self.root / "volumes"

    @property
    def stops(self) -> Path:
        """<Kind>-<name>: asks a `herdsman run` at work to stop one resource."""
        return self.root / "stops"

    @property
    def lock_file(self) -> Path:
        """Held by the one `herdsman run` at work; holds its process id."""
        return self.root / "lock"

    def create(self) -> None:
        """Make the home, and a .gitignore so that nothing in it is ever committed; raises HomeRefused."""
        self.check_format()
        try:
            self.volumes.mkdir(parents=True, exist_ok=True)
            ignore = self.root / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
            write_json(self.root / "home.json", {"format": FORMAT})
        except OSError as error:
            raise HomeRefused(
                f"{self.root} cannot be used as a home ({error.strerror}); name another with --home"
            ) from error

    def check_format(self) -> None:
        """Raise HomeRefused where a newer Herdsman has written this home."""
        known = (read_object(self.root / "home.json") or {}).get("format", FORMAT)
        if known != FORMAT:
            what = f"{self.root} was written in format {known}, and this Herdsman knows {FORMAT}"
            raise HomeRefused(f"{what}; upgrade it, or name another --home")


def local_site(home: Home) -> Site:
    """Return the facts of this machine: directories for mounts, this interpreter for an image."""
    return Site(
        volumes_root=str(home.volumes),
        config_file=str(home.configs / "{name}.json"),
        adapters_file=str(home.configs / "{name}.json"),
        python=os.environ.get(PYTHON_VARIABLE) or sys.executable,
        master_address="127.0.0.1",
        master_ports=MASTER_PORTS,
        metrics_port=0,  # side-by-side runs would quarrel over one port; the progress file says the same
        local=True,
    )
