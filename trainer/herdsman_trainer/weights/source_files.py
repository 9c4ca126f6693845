"""Finds out what a source is, and refuses files that are not what their names say before anything is opened."""

from pathlib import Path

import torch

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.gguf_import import open_gguf_model
from herdsman_trainer.weights.meta_import import open_meta_model
from herdsman_trainer.weights.meta_model import has_meta
from herdsman_trainer.weights.model_copy import open_directory
from herdsman_trainer.weights.opened_model import OpenedModel
from herdsman_trainer.weights.pickle_model import has_bin
from herdsman_trainer.weights.reading import INDEX_FILE, SINGLE_FILE

SUFFIXES = (".safetensors", ".bin", ".pth", ".gguf", ".json", ".model")
"""Of weights, configuration and tokenizers."""
UNFINISHED = (".part", ".partial", ".incomplete", ".crdownload", ".download", ".aria2", ".tmp")
"""What programs put behind the name of a file that they have not finished."""
LFS_HEAD = b"version https://git-lfs.github.com/spec/"
LFS_MOST_BYTES = 1024


def open_source(source: Path, root: Path, dtype: torch.dtype | None, *, frozen: bool = False) -> OpenedModel:
    """Open a directory with a model, or one GGUF file, of the volume that `root` is.

    Of several forms in one directory safetensors come before .bin, Meta's and GGUF. `frozen` files are never changed.
    Raises BadInput, naming file and remedy, for whatever is not a whole model.
    """
    for path in sorted(source.iterdir()) if source.is_dir() else [source]:
        check_file(path, root)
    model = _open(source, root, dtype, frozen=frozen)
    for path in model.others:  # a tokenizer may lie above
        check_file(path, root)
    return model


def _open(source: Path, root: Path, dtype: torch.dtype | None, *, frozen: bool) -> OpenedModel:
    if source.is_file():
        if source.suffix != ".gguf":
            hint = "Name the directory that the file lies in, with configuration and tokenizer beside it."
            raise BadInput("Of single files only GGUF files hold a whole model.", file=str(source), hint=hint)
        return open_gguf_model(source, dtype or torch.bfloat16)
    safetensors = (source / SINGLE_FILE).is_file() or (source / INDEX_FILE).is_file()
    if not safetensors and has_bin(source):
        return open_directory(source, dtype, pickled=True)
    if not safetensors and has_meta(source):
        return open_meta_model(source, root, dtype)
    if not safetensors and (gguf := _only_gguf(source)):
        return open_gguf_model(gguf, dtype or torch.bfloat16)
    return open_directory(source, dtype, pickled=False, frozen=frozen)


def check_file(path: Path, root: Path) -> None:
    """Raise BadInput for a file that leads outside the volume, is half-downloaded, or is a Git LFS pointer.

    Files of other kinds than weights, configuration and tokenizers are let alone.
    """
    unfinished = path.suffix in UNFINISHED
    name = path.stem if unfinished else path.name
    if not name.endswith(SUFFIXES):
        return
    if not path.resolve().is_relative_to(root.resolve()):
        message = "The file is a link that leads outside its volume."
        raise BadInput(message, file=str(path), hint="Copy the file itself onto the volume.")
    if unfinished:
        size = path.stat().st_size
        message = f"The download of {name} is not finished: {path.name} has {size} bytes so far."
        raise BadInput(message, file=str(path), hint="Let it finish, or delete what is left of it.")
    if path.is_file() and path.stat().st_size <= LFS_MOST_BYTES and path.read_bytes().startswith(LFS_HEAD):
        raise _lfs_pointer(path)


def _lfs_pointer(path: Path) -> BadInput:
    fields = dict(line.split(" ", 1) for line in path.read_text(errors="replace").splitlines() if " " in line)
    digest = fields.get("oid", "").removeprefix("sha256:")
    message = f"This is a Git LFS pointer of {path.stat().st_size} bytes, not the file: "
    message += f"that has {fields.get('size', '?')} bytes and the SHA-256 {digest}."
    return BadInput(message, file=str(path), hint="Run `git lfs pull` where it was cloned, and copy the files again.")


def _only_gguf(source: Path) -> Path | None:
    files = sorted(source.glob("*.gguf"))
    if len(files) > 1:
        message = f"The directory has {len(files)} GGUF files: {', '.join(path.name for path in files[:4])}."
        raise BadInput(message, file=str(source), hint="Name one of them in the path of the source.")
    return files[0] if files else None
