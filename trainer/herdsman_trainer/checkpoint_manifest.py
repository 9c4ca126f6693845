"""The manifest of a checkpoint: what it belongs to, which files it has, and whether they are still what was written."""

import hashlib
import json
from pathlib import Path

from pydantic import Field, ValidationError

from herdsman.api.job_config import FileDigest
from herdsman.api.meta import ApiModel
from herdsman_trainer.weights.digests import digest_file

MANIFEST = "manifest.json"
FORMAT = 1
PREFIX = "step-"


class CheckpointManifest(ApiModel):
    """manifest.json of a checkpoint."""

    format: int = FORMAT
    step: int = Field(ge=0)
    """Optimizer steps done; the whole cursor into the data."""
    attempt: int
    world_size: int
    recipe_digest: str
    """SHA-256 over everything that decides the mathematics."""
    threads: int
    """PyTorch's threads: with another number sums on the CPU differ in the last bits."""
    torch: str
    created: str
    """RFC 3339 time."""
    notes: dict[str, float] = Field(default_factory=dict)
    """Figures that a resumed run goes on with."""
    files: dict[str, FileDigest]
    """By path relative to the checkpoint's directory."""
    digest: str = ""
    """SHA-256 over the rest of the manifest."""

    def sealed(self) -> "CheckpointManifest":
        """Return the manifest with its own digest filled in."""
        body = self.model_dump(mode="json", by_alias=True, exclude={"digest"})
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        return self.model_copy(update={"digest": hashlib.sha256(text.encode()).hexdigest()})

    def to_bytes(self) -> bytes:
        """Return the content of manifest.json; verify() accepts no other layout of the same values."""
        return self.model_dump_json(by_alias=True, indent=1).encode()


def verify(directory: Path) -> CheckpointManifest:
    """Check names, sizes and SHA-256 of a checkpoint's files; raises ValueError saying what is wrong."""
    try:
        data = (directory / MANIFEST).read_bytes()
        manifest = CheckpointManifest.model_validate_json(data)
        if data != manifest.sealed().to_bytes():
            raise ValueError(f"{MANIFEST} was changed")
        if directory.name != name_of(manifest.step):
            raise ValueError(f"{MANIFEST} is of step {manifest.step}")
        present = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
        if odd := present ^ {*manifest.files, MANIFEST}:
            raise ValueError(f"{min(odd)} is {'extra' if min(odd) in present else 'missing'}")
        for name, expected in manifest.files.items():
            if (directory / name).stat().st_size != expected.bytes or digest_file(directory / name) != expected:
                raise ValueError(f"{name} is damaged")
    except ValidationError as error:
        raise ValueError(f"{MANIFEST} is damaged: {error.errors()[0]['msg']}") from error
    except OSError as error:
        raise ValueError(f"{error.strerror}: {error.filename}") from error
    return manifest


def name_of(step: int) -> str:
    """Return the directory name of a step's checkpoint."""
    return f"{PREFIX}{step:08d}"


def step_of(directory: Path) -> int:
    """Return the step in a checkpoint's directory name, −1 for other names."""
    digits = directory.name.removeprefix(PREFIX)
    return int(digits) if directory.name.startswith(PREFIX) and digits.isdecimal() else -1
