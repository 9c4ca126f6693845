"""fetch: what a spec names elsewhere becomes a directory of checked files beside the run's work."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Protocol

from herdsman.api.job_config import (
    HTTP_TOKEN_VARIABLE,
    HUB_TOKEN_VARIABLE,
    S3_KEY_VARIABLES,
    FileDigest,
    ModelImportConfig,
    RemoteSource,
)
from herdsman_trainer.downloads.blob_store import BlobStore
from herdsman_trainer.downloads.bucket import SESSION_VARIABLE, Bucket
from herdsman_trainer.downloads.hub import Hub
from herdsman_trainer.downloads.patience import Patience, Run
from herdsman_trainer.downloads.progress import DOWNLOADING, DownloadProgress
from herdsman_trainer.downloads.remote_files import RemoteFile, check_names
from herdsman_trainer.downloads.selection import Wish, model_files
from herdsman_trainer.downloads.transfer import held_digest, transfer
from herdsman_trainer.downloads.web import Web
from herdsman_trainer.errors import BadInput, Temporary
from herdsman_trainer.free_space import require_space
from herdsman_trainer.run_context import RunContext

DIRECTORY = ".downloaded"
"""In the workspace: links to the files of this import, until it is published."""
MARGIN = 1.01


@dataclass(frozen=True)
class Downloaded:
    """The files of a remote source, checked and immutable."""

    directory: Path
    """The deepest directory that has them all."""
    named: str
    """The field of the spec that says where `directory` comes from."""
    digests: Mapping[str, FileDigest]
    """Size and SHA-256 of each, by its path in `directory`."""
    expected: Mapping[str, str]
    """The SHA-256 that the spec or the source says of them, by path in `directory`; all of it was checked."""
    inputs: Mapping[str, str]
    """What is put on record about them, by field of the spec."""
    share: float
    """The share of the import's work that getting them was."""
    figures: Mapping[str, float]
    """Bytes that were downloaded, and bytes that were there already."""
    release: Callable[[], None]
    """To be called once the model is published: removes the links, and without spec.keepDownloads the files that no
    other import uses."""


class Source(Protocol):
    """A hub, a bucket, or the web."""

    def files(self) -> Sequence[RemoteFile]:
        """Return what is to be downloaded."""

    def sized(self, file: RemoteFile) -> int | None:
        """Return the size of a file, as far as anybody says it."""

    def close(self) -> None:
        """Close what is open."""


@dataclass(frozen=True)
class Order:
    """What is to be fetched, by whom, and to where."""

    remote: RemoteSource
    wish: Wish
    user: str
    """By what the store remembers who uses the files."""
    top: Path
    """The directory of links to the files."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """The digests that the spec adds, by name."""
    sha256_field: str = "spec.sha256"
    keep: bool = True
    """Whether the files stay when nobody uses them any more."""
    again: bool = False
    """Whether files that are there are read again."""


def fetch(
    config: ModelImportConfig,
    run: RunContext,
    *,
    environment: Mapping[str, str] = os.environ,
    patience: Patience | None = None,
) -> Downloaded:
    """Download the model that config.remote names; see `fetch_files`."""
    if config.remote is None:
        raise BadInput("Nothing says where the model comes from.", hint="Set one member of spec.source.")
    order = Order(
        config.remote,
        Wish(config.remote.field, model_files),
        user=config.owner.uid,
        top=run.workspace / DIRECTORY,
        sha256=config.sha256,
        keep=config.keep_downloads,
        again=config.verify_inputs == "Digests",
    )
    root = Path(config.workspace.root)
    return fetch_files(order, root, run, environment=environment, patience=patience or Patience(run))


def fetch_files(
    order: Order, claim_root: Path, run: Run, *, environment: Mapping[str, str], patience: Patience
) -> Downloaded:
    """Download what the order names into the store of the workspace's claim, and link it into its directory.

    What the store holds is not downloaded again. Raises BadInput for what no retry mends: a file that is not there, not
    given, or not what it must be; Temporary where a server is away for long or the volume is full; Interrupted on
    request. What has come by then is kept, and the next attempt goes on with it.
    """
    run.report(activity="looking for the files", done=0.0)
    named = order.wish.field
    store = BlobStore(claim_root)
    source = _source(order, environment, store, patience)
    try:
        files = _expected(source.files(), order)
        held = {file.name: held_digest(file, store, read=order.again) for file in files}
        missing = [file for file in files if held[file.name] is None]
        sizes: dict[str, int | None] = {}
        for file in missing:
            run.raise_if_stopped()
            sizes[file.name] = source.sized(file)
        require_space(store.root, _still_to_come(missing, sizes, store), "the download", margin=MARGIN)
        progress = DownloadProgress(run, sizes)
        digests = {name: digest for name, digest in held.items() if digest is not None}
        store.use(order.user, set(digests.values()))
        for file in missing:
            digests[file.name] = transfer(
                file, store, patience, progress.of(file.name), partial(progress.waits, file.name)
            )
            store.use(order.user, set(digests.values()))
            progress.finished(file.name, store.blob(digests[file.name]).stat().st_size)
    finally:
        source.close()
    _link(digests, store, order.top)
    reused = sum(store.blob(digest).stat().st_size for name, digest in digests.items() if held[name] is not None)

    def release() -> None:
        shutil.rmtree(order.top, ignore_errors=True)
        if not order.keep:
            store.release(order.user)

    directory = _common_directory(list(digests))
    inside = {name: str(PurePosixPath(name).relative_to(directory)) for name in digests}
    sizes_there = {name: (order.top / name).stat().st_size for name in digests}
    return Downloaded(
        directory=order.top / directory,
        named=named if directory == "." else f"{named}/{directory}",
        digests={inside[name]: FileDigest(bytes=sizes_there[name], sha256=digests[name]) for name in digests},
        expected={inside[file.name]: file.sha256 for file in files if file.sha256 is not None},
        inputs=_inputs(order, files, digests),
        share=DOWNLOADING if missing else 0.0,
        figures={"downloaded_bytes": progress.received, "reused_bytes": reused},
        release=release,
    )


def _source(order: Order, environment: Mapping[str, str], store: BlobStore, patience: Patience) -> Source:
    remote, named = order.remote, order.wish.field
    if remote.hub is not None:
        token = _given(HUB_TOKEN_VARIABLE, f"{named}.token", environment) if remote.hub.token else None
        return Hub(remote.hub, token, environment, store, patience, order.wish)
    if remote.http is not None:
        token = _given(HTTP_TOKEN_VARIABLE, f"{named}.token", environment) if remote.http.token else None
        return Web(remote.http, token, named)
    assert remote.s3 is not None, "one of the three is set"
    credentials: dict[str, str] = {}
    if remote.s3.credentials_secret is not None:
        secret = f"{named}.credentialsSecret"
        credentials = {name: _given(name, secret, environment) for name in S3_KEY_VARIABLES}
        credentials[SESSION_VARIABLE] = environment.get(SESSION_VARIABLE, "")
    return Bucket(remote.s3, credentials, patience, order.wish)


def _given(variable: str, field: str, environment: Mapping[str, str]) -> str:
    value = environment.get(variable, "").strip()
    if not value:
        hint = f"Put it into the Secret that {field} names; with herdsman run, export {variable}."
        raise BadInput(f"{field} is set and the environment has no {variable}.", hint=hint)
    return value


def _expected(files: Sequence[RemoteFile], order: Order) -> list[RemoteFile]:
    """Return the files with the digests that the spec adds; raises BadInput for a contradiction before any byte."""
    named = order.wish.field
    check_names(files, named)
    names = {file.name for file in files}
    for name in order.sha256:
        if name not in names:
            hint = f"Correct the name in {order.sha256_field}, or choose the file in {named}."
            raise BadInput(f"{order.sha256_field} names {name}, which is not among the files of {named}.", hint=hint)
    found = []
    for file in files:
        digest = order.sha256.get(file.name)
        if digest is not None and file.sha256 not in (None, digest):
            message = (
                f"{order.sha256_field} expects {digest} of {file.name}, and {named} says that it is {file.sha256}."
            )
            hint = "It is another version: correct the digest, or name the source that has the file you mean."
            raise BadInput(message, reason="ChecksumMismatch", file=file.location, hint=hint)
        found.append(file if digest is None else replace(file, sha256=digest))
    return found


def _still_to_come(files: Sequence[RemoteFile], sizes: Mapping[str, int | None], store: BlobStore) -> int:
    return sum(max(0, (sizes[file.name] or 0) - store.partial_bytes(file.key)) for file in files)


def _link(digests: Mapping[str, str], store: BlobStore, top: Path) -> None:
    shutil.rmtree(top, ignore_errors=True)
    top.mkdir(parents=True)
    for name, digest in digests.items():
        try:
            store.place(digest, top / name)
        except FileNotFoundError:
            hint = "The next attempt downloads it again."
            raise Temporary(f"The download of {name} was removed meanwhile.", file=str(top), hint=hint) from None


def _common_directory(names: Sequence[str]) -> str:
    """Return the deepest directory that all of these lie in: files that were chosen from original/ make a model."""
    return os.path.commonpath([PurePosixPath(name).parent for name in names]) or "."


def _inputs(order: Order, files: Sequence[RemoteFile], digests: Mapping[str, str]) -> dict[str, str]:
    hub, named = order.remote.hub, order.wish.field
    found = {f"{named}.revision": hub.revision} if hub is not None else {}
    for file in files:
        found[f"{named}/{file.name}"] = digests[file.name]
        found |= {f"{named}/{file.name} {what}": value for what, value in file.origin.items()}
    return found
