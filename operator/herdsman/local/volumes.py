"""Volumes of this machine: directories of the home, or links to directories that the user names."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from herdsman.core.world import VolumeFacts
from herdsman.local.home import Home


class VolumeRefused(Exception):
    """A --volume cannot be used; the message says why and what to do."""


def parse_volumes(options: Sequence[str]) -> dict[str, Path]:
    """Read CLAIM=DIRECTORY options; raises VolumeRefused."""
    mapped: dict[str, Path] = {}
    for option in options:
        claim, equals, directory = option.partition("=")
        if not (claim and equals and directory):
            raise VolumeRefused(f"--volume {option}: write CLAIM=DIRECTORY, such as corpora=./texts")
        path = Path(directory).expanduser().absolute()
        if not path.is_dir():
            raise VolumeRefused(f"--volume {option}: {path} is not a directory")
        mapped[claim] = path
    return mapped


class Volumes:
    """The volumes of a home; `mapped` ones are seen without being remembered, `assumed` takes all others as there."""

    def __init__(self, home: Home, mapped: Mapping[str, Path] | None = None, *, assumed: bool = False) -> None:
        self._root = home.volumes
        self._mapped = dict(mapped or {})
        self._assumed = assumed

    def exists(self, claim: str) -> bool:
        """Whether there is a directory for the claim."""
        return self._mapped.get(claim, self._root / claim).is_dir()

    def remember(self, mapped: Mapping[str, Path]) -> None:
        """Link the claims to their directories; raises VolumeRefused where a claim has files of its own already."""
        for claim, directory in mapped.items():
            link = self._root / claim
            if link.is_symlink():
                if link.readlink() == directory:
                    continue
                link.unlink()
            elif link.is_dir():
                if any(link.iterdir()):
                    what = f"--volume {claim}={directory}: the home has a volume {claim} with files in it"
                    raise VolumeRefused(f"{what} ({link}); move them, or use that volume without --volume")
                link.rmdir()
            link.symlink_to(directory, target_is_directory=True)

    def make(self, claim: str) -> None:
        """Make an empty volume unless there is one."""
        path = self._root / claim
        if not path.is_symlink():
            path.mkdir(parents=True, exist_ok=True)

    def facts(self, claims: Sequence[str]) -> dict[str, VolumeFacts]:
        """Return those of the claims that exist."""
        found = {}
        for claim in claims:
            link = self._root / claim
            path = self._mapped.get(claim, link)
            if path.is_dir():
                free = shutil.disk_usage(path).free
                found[claim] = VolumeFacts(claim, ("ReadWriteOnce", "ReadWriteMany"), free_bytes=free)
            elif link.is_symlink():
                message = f"its directory {link.readlink()} is gone; put it back, or give --volume {claim}=DIRECTORY"
                found[claim] = VolumeFacts(claim, bound=False, message=message)
            elif self._assumed:
                found[claim] = VolumeFacts(claim, ("ReadWriteOnce", "ReadWriteMany"))
        return found

    def purge(self, claim: str, relative: str) -> list[Path]:
        """Delete a directory of a volume, and the volume where nothing is left in it; return what was deleted."""
        volume = self._root / claim
        target = volume / relative
        if not target.resolve().is_relative_to(volume.resolve()) or not target.exists():
            return []
        shutil.rmtree(target)
        deleted = [target]
        for parent in target.parents:
            if parent == volume.parent or any(parent.iterdir()) or (parent == volume and volume.is_symlink()):
                break
            parent.rmdir()
            deleted.append(parent)
        return deleted
