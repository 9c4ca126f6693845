"""Builders for tests of downloads: configurations, a patience that does not sleep, and what killed attempts leave."""

from pathlib import Path

from herdsman.api.job_config import ModelImportConfig, RemoteSource
from herdsman_trainer.downloads.blob_store import STORE
from herdsman_trainer.downloads.fetching import Downloaded, fetch
from herdsman_trainer.downloads.patience import Patience
from herdsman_trainer.run_context import RunContext
from remote_server import Remote, sha256
from run_configs import owner, workspace


def web(remote: Remote, *paths: str, host: str | None = None, **source) -> RemoteSource:
    """Files of a web server with their right digests."""
    files = [{"url": f"{host or remote.url}{path}", "sha256": sha256(remote.files[path])} for path in paths]
    return RemoteSource.model_validate({"http": {"files": files, **source}})


def import_config(root: Path, remote: RemoteSource, name: str = "base", attempt: int = 1, **options):
    return ModelImportConfig(
        owner=owner(name, f"uid-{name}", "ModelImport"),
        attempt=attempt,
        workspace=workspace(root, f"modelimports/{name}"),
        remote=remote,
        **options,
    )


class Waits:
    """A patience that does not sleep, and remembers how long it would have."""

    def __init__(self, run: RunContext) -> None:
        self.slept: list[float] = []
        self.patience = Patience(run, sleep=self.slept.append)


def download(root: Path, source: RemoteSource, *, environment=None, **options) -> Downloaded:
    """What an import of the source gets, on the claim at `root`."""
    run = RunContext(import_config(root, source, **options), rank=0)
    return fetch(run.config, run, environment=environment or {}, patience=Waits(run).patience)


def leave_partial(root: Path, content: bytes, key: str, etag: str | None = None) -> None:
    """What a killed attempt leaves."""
    directory = root / STORE / "partial"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / key).write_bytes(content)
    if etag:
        (directory / f"{key}.etag").write_text(etag)


def partials(root: Path) -> dict[str, bytes]:
    """The files that are still coming, by their keys."""
    return {path.name: path.read_bytes() for path in (root / STORE / "partial").iterdir()}
