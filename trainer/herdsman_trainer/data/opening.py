"""The datasets that a run names: brought here where they lie elsewhere, and checked against what is expected."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from herdsman.api.job_config import DatasetInput, TrainingConfig
from herdsman_trainer.artifacts import OnBytes, open_input
from herdsman_trainer.content_cache import open_entry
from herdsman_trainer.data.datasets import Dataset, check_digests, dataset_at
from herdsman_trainer.data.pinning import check_unchanged, pin, read_pin
from herdsman_trainer.downloads.fetching import DIRECTORY, Downloaded, Order, fetch_files
from herdsman_trainer.downloads.patience import Patience
from herdsman_trainer.downloads.selection import Wish, ending_in
from herdsman_trainer.errors import BadInput
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.text_files import ends_in, find_files, relative_name, wanted_files

Find = Callable[[Path], Sequence[Path]]


@dataclass(frozen=True)
class Form:
    """What files of a dataset are looked for."""

    suffixes: tuple[str, ...]

    def find(self, source: Path) -> list[Path]:
        """Return the files under a directory; BadInput for none."""
        return find_files(source, self.suffixes)


class OpenedDatasets:
    """The datasets of a run: here, whole, and the same as in the attempts before."""

    def __init__(self, datasets: Sequence[Dataset], run: RunContext, downloads: Sequence[Downloaded]) -> None:
        self.datasets = datasets
        self._run = run
        self._downloads = downloads

    def finished(self) -> None:
        """Take note that the datasets are tokenised: they are fixed now, and what was downloaded may go."""
        pin(self._run.workspace, self.datasets)
        for downloaded in self._downloads:
            downloaded.release()


def open_datasets(
    config: TrainingConfig,
    run: RunContext,
    form: Form,
    on_bytes: OnBytes,
    key_of: Callable[[Sequence[Dataset]], str],
    *,
    environment: Mapping[str, str] = os.environ,
    patience: Patience | None = None,
) -> OpenedDatasets:
    """Return the datasets of a run; for one process.

    `key_of` says under which key their tokens are cached: where an attempt before has downloaded and tokenised them,
    nothing is downloaded, and no server is asked. Every byte of the others is read for its digest. BadInput where files
    are missing, are not what spec says they are, or are not what they were when this run began.
    """
    here = {
        place: _on_volume(dataset, form, config, on_bytes)
        for place, dataset in enumerate(config.datasets)
        if dataset.source is not None
    }
    remembered = {
        place: fixed
        for place, dataset in enumerate(config.datasets)
        if place not in here and (fixed := _remembered(dataset, run)) is not None
    }
    if remembered and len(here) + len(remembered) == len(config.datasets):
        found = here | remembered
        known = [found[place] for place in sorted(found)]
        if open_entry(run.cache_dir, key_of(known), check_content=True) is not None:
            return OpenedDatasets(_unchanged(known, run), run, [])
    downloads: list[Downloaded] = []
    opened = []
    for place, dataset in enumerate(config.datasets):
        if place not in here:
            downloads.append(fetch_dataset(place, dataset, run, form.suffixes, environment, patience))
            here[place] = _downloaded(dataset, downloads[-1], form)
        opened.append(here[place])
    return OpenedDatasets(_unchanged(opened, run), run, downloads)


def _unchanged(datasets: Sequence[Dataset], run: RunContext) -> Sequence[Dataset]:
    for dataset in datasets:
        check_unchanged(run.workspace, dataset)
    return datasets


def _on_volume(dataset: DatasetInput, form: Form, config: TrainingConfig, on_bytes: OnBytes) -> Dataset:
    assert dataset.source is not None
    path = open_input(dataset.source, config.verify_inputs, on_bytes)
    found = dataset_at(path, form.find, field=dataset.field, label=dataset.label, weight=dataset.weight)
    check_digests(found, dataset.sha256)
    return found


def _remembered(dataset: DatasetInput, run: RunContext) -> Dataset | None:
    """Return what an attempt before has downloaded, without its files; None where none has tokenised it."""
    fixed = read_pin(run.workspace)
    files = fixed.datasets.get(dataset.field) if fixed is not None else None
    if files is None:
        return None
    source = run.workspace / DIRECTORY
    paths, digests = tuple(source / file.name for file in files), tuple(file.sha256 for file in files)
    stamps = [(file.bytes, 0, 0) for file in files]
    return Dataset(dataset.field, dataset.label, source, paths, digests, stamps, dataset.weight)


def dataset_here(
    place: int, dataset: DatasetInput, run: RunContext, suffixes: tuple[str, ...]
) -> tuple[Path, Downloaded | None]:
    """Return where a dataset lies, and what was downloaded for that; files of a volume are held against `sha256`."""
    if dataset.source is None:
        downloaded = fetch_dataset(place, dataset, run, suffixes)
        return downloaded.directory, downloaded
    path = open_input(dataset.source, run.config.verify_inputs)
    if dataset.sha256:
        check_digests(dataset_at(path, Form(suffixes).find, field=dataset.field), dataset.sha256)
    return path, None


def fetch_dataset(
    place: int,
    dataset: DatasetInput,
    run: RunContext,
    suffixes: tuple[str, ...],
    environment: Mapping[str, str] = os.environ,
    patience: Patience | None = None,
) -> Downloaded:
    """Download a dataset that is elsewhere, the one at `place` among those of a run; see `fetch_files`."""
    assert dataset.remote is not None, "a dataset is on a volume or remote"
    config = run.config
    wanted = ending_in(lambda name: ends_in(name, suffixes), wanted_files(suffixes))
    order = Order(
        dataset.remote,
        Wish(f"{dataset.field}.{dataset.remote.chosen[0]}", wanted, dataset=True),
        user=f"{config.owner.uid}.{place}",
        top=run.workspace / DIRECTORY / str(place),
        sha256=dataset.sha256,
        sha256_field=f"{dataset.field}.sha256",
        keep=dataset.keep_downloads,
        again=config.verify_inputs == "Digests",
    )
    voice = _Voice(run)
    root = Path(config.workspace.root)
    return fetch_files(order, root, voice, environment=environment, patience=patience or Patience(voice))


def _downloaded(dataset: DatasetInput, downloaded: Downloaded, form: Form) -> Dataset:
    for name in downloaded.digests:
        if not ends_in(name, form.suffixes):
            raise BadInput(
                f"{downloaded.named}: {name} is no {wanted_files(form.suffixes)} file, by its name.",
                file=name,
                hint="Give it in `path` a name that says what it holds, or leave the file out.",
            )
    digests = {downloaded.directory / name: known.sha256 for name, known in downloaded.digests.items()}
    source = downloaded.directory
    files = tuple(sorted(digests, key=lambda path: relative_name(path, source)))
    stamps = [(status.st_size, status.st_mtime_ns, status.st_ino) for status in (path.stat() for path in files)]
    own = tuple(digests[path] for path in files)
    return Dataset(dataset.field, dataset.label, source, files, own, stamps, dataset.weight)


class _Voice:
    """Says what a download does; how far a training is, is not counted in bytes."""

    def __init__(self, run: RunContext) -> None:
        self._run = run

    def report(self, *, activity: str | None = None, done: float | None = None) -> None:
        del done
        self._run.report(activity=activity)

    def raise_if_stopped(self) -> None:
        self._run.raise_if_stopped()
