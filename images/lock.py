"""Writes the locked requirements of the images with uv: exact versions and the SHA-256 of every file that pip may take.

`python images/lock.py` renews all of them; a version that is younger than the cool-down is not taken, so that a release
that was hijacked has time to be found out. torch is chosen when an image is built (the build argument TORCH), so the
locks hold what torch needs but not torch; torch-cuda.txt holds the CUDA build with its libraries, for `TORCH="-r ..."`.
"""

import argparse
import datetime
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
REQUIREMENTS = PROJECT / "images" / "requirements"
TORCH = "torch==2.13.0"
PYTHON = "3.11"
PLATFORM = "linux"
COOL_DOWN = datetime.timedelta(days=7)
CUDA = re.compile(r"^(torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)$")
"""Packages that belong to one build of torch."""


@dataclass(frozen=True)
class Lock:
    """One file of locked requirements."""

    name: str
    purpose: str
    extras: tuple[str, ...] = ()
    """Extras of the project; its own dependencies come with them."""
    requirements: tuple[str, ...] = ()
    """Requirements that are not the project's."""
    constraints: tuple[str, ...] = ()
    """Locks that were written before and whose versions hold here too."""
    cuda: bool = False
    """Whether to keep torch and the CUDA libraries, and nothing else."""

    @property
    def path(self) -> Path:
        """The file."""
        return REQUIREMENTS / f"{self.name}.txt"


def locks() -> list[Lock]:
    """Return the locks in the order in which they are written."""
    build_system = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    return [
        Lock("build", "what builds the images", requirements=("pip", "setuptools", *build_system["requires"])),
        Lock("torch", f"what {TORCH} needs, without it", requirements=(TORCH,)),
        Lock("torch-cuda", f"{TORCH} and its CUDA libraries", requirements=(TORCH,), cuda=True),
        Lock("operator", "the operator", extras=("operator",)),
        Lock("trainer", "the trainer", extras=("trainer", "deepspeed", "trackers"), constraints=("torch",)),
        Lock("server", "the server", extras=("server",), constraints=("torch", "trainer")),
    ]


def uv() -> list[str]:
    """Return the command of uv: the one of this interpreter, or the one on PATH."""
    if subprocess.run([sys.executable, "-c", "import uv"], capture_output=True, check=False).returncode == 0:
        return [sys.executable, "-m", "uv"]
    found = shutil.which("uv")
    if found is None:
        sys.exit("uv is not installed: pip install uv, then run this again")
    return [found]


def command(lock: Lock, until: str) -> list[str]:
    """Return the uv command that resolves a lock from releases before `until`; requirements come by standard input."""
    sources = ["pyproject.toml"] if lock.extras else []
    argv = [*uv(), "pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--allow-unsafe", "--upgrade"]
    argv += ["--python-version", PYTHON, "--python-platform", PLATFORM, "--exclude-newer", until]
    argv += [part for extra in lock.extras for part in ("--extra", extra)]
    argv += [part for name in lock.constraints for part in ("--constraint", f"images/requirements/{name}.txt")]
    return [*argv, *sources, "-"]


def entries(compiled: str) -> dict[str, str]:
    """Return the lines of every package of a compiled lock by the package's name."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in compiled.splitlines():
        if started := re.match(r"([a-z0-9-]+)==", line):
            name = started[1]
        found.setdefault(name, []).append(line)
    return {name: "\n".join(lines) for name, lines in found.items()}


def resolve(lock: Lock, until: str) -> str:
    """Return the text of a lock."""
    requirements = "\n".join([*lock.requirements, *([TORCH] if lock.extras and lock.name != "operator" else [])])
    ran = subprocess.run(
        command(lock, until), cwd=PROJECT, input=requirements, capture_output=True, text=True, check=False
    )
    if ran.returncode != 0:
        sys.exit(f"{lock.path.name}: uv found no set of versions:\n{ran.stderr}")
    kept = [text for name, text in entries(ran.stdout).items() if bool(CUDA.match(name)) == lock.cuda]
    header = f"# Locked: {lock.purpose}. Python {PYTHON} or newer, Linux; releases before {until}.\n"
    return f"{header}# Written by images/lock.py; do not edit.\n" + "\n".join(kept) + "\n"


def main() -> None:
    """Write every lock, or those that are named."""
    parser = argparse.ArgumentParser(description="Renew the locked requirements of the images.")
    known = locks()
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(lock.name for lock in known)} (all)")
    wanted = set(parser.parse_args().names) or {lock.name for lock in known}
    if unknown := wanted - {lock.name for lock in known}:
        parser.error(f"no lock is named {', '.join(sorted(unknown))}")
    until = (datetime.datetime.now(datetime.UTC) - COOL_DOWN).strftime("%Y-%m-%dT00:00:00Z")
    REQUIREMENTS.mkdir(exist_ok=True)
    for lock in known:
        if lock.name in wanted:
            lock.path.write_text(resolve(lock, until), encoding="utf-8")
            sys.stdout.write(f"{lock.path.relative_to(PROJECT)}\n")


if __name__ == "__main__":
    main()
