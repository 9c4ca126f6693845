"""Manifests that a command was given: read, or refused with everything that is wrong with them."""

import sys
from collections.abc import Sequence
from pathlib import Path

from herdsman.cli.refusals import USAGE, Refused
from herdsman.local.manifests import Manifests, load_manifests


def checked_manifests(paths: Sequence[Path]) -> Manifests:
    """Return the manifests, with notes printed to stderr; raises Refused with everything that is wrong."""
    manifests = load_manifests(paths)
    for note in manifests.notes:
        sys.stderr.write(f"{note}\n")
    if manifests.problems:
        listed = "\n".join(str(problem) for problem in manifests.problems)
        count = len(manifests.problems)
        raise Refused(
            f"{count} problem{'' if count == 1 else 's'} in the manifests; nothing was applied\n{listed}", USAGE
        )
    return manifests
