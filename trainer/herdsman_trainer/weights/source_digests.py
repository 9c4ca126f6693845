"""Digests of the files an import is made from: taken, compared with what was expected, and looked up."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from herdsman.api.job_config import FileDigest
from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.digests import digest_file
from herdsman_trainer.weights.opened_model import OpenedModel
from herdsman_trainer.weights.pickle_reading import digest_checkpoint
from herdsman_trainer.weights.published import recognise, resembles

CHECKPOINTS = (".pth", ".bin")
log = logging.getLogger(__name__)


def expected_files(directory: Path, expected: Mapping[str, str]) -> dict[str, Path]:
    """Return the files that spec.sha256 names; raises BadInput for one that is not there, or outside."""
    files = {name: directory / name for name in sorted(expected)}
    for name, path in files.items():
        if not path.is_file() or not path.resolve().is_relative_to(directory.resolve()):
            hint = "Correct the name in spec.sha256, or put the file on the volume."
            raise BadInput(f"spec.sha256 names {name}, which is not there.", file=str(path), hint=hint)
    return files


def take_digests(
    files: Mapping[str, Path], weights: Sequence[Path], on_bytes: Callable[[str, int], None]
) -> dict[str, FileDigest]:
    """Read each file once; where weights are torch's checkpoints the checksums inside are compared (pickle_reading)."""
    found = {}
    for name, path in files.items():
        read = digest_checkpoint if path in weights and path.suffix in CHECKPOINTS else digest_file
        found[name] = read(path, partial(on_bytes, name))
    return found


def check_expected(directory: Path, expected: Mapping[str, str], known: Mapping[str, FileDigest]) -> None:
    """Raise BadInput (ChecksumMismatch) for a file with another digest than spec.sha256 says."""
    for name, wanted in expected.items():
        if known[name].sha256 != wanted:
            message = f"SHA-256 is {known[name].sha256} and spec.sha256 expects {wanted}."
            hint = "The file was cut or changed on its way, or is another version: fetch it again."
            raise BadInput(message, reason="ChecksumMismatch", file=str(directory / name), hint=hint)


def tell_published(model: OpenedModel, files: Mapping[str, Path], known: Mapping[str, FileDigest]) -> dict[str, str]:
    """Log what the files are by the table of published digests, and return it as figures.

    A file that only has the name and the size of a published one gets a note: others converted the same weights, and
    their files have other digests.
    """
    models: set[str | None] = set()
    figures: dict[str, str] = {}
    for name, path in files.items():
        published = recognise(known[name].sha256)
        if published:
            log.info("%s is recognised by its SHA-256: this is %s.", path, published)
        elif model.form and (like := resembles(path.name, model.form, *model.size)):
            digest = known[name].sha256
            log.info("%s has the name and the size of %s, but another SHA-256 (%s).", path, like, digest)
        if path in model.weights:
            models.add(published.model if published else None)
        elif published and published.form == "tokenizer":
            figures["recognised_tokenizer"] = published.model
    if len(models) == 1 and (only := models.pop()):
        figures["recognised_model"] = only
    return figures
