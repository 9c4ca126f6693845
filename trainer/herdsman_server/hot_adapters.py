"""The adapters that a running server has: what the list says, made true; what cannot be is told and tried again."""

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from pydantic import ValidationError

from herdsman.api.job_config import AdapterList, AdapterReport, ListedAdapter
from herdsman.api.v1alpha1.status import AdapterStatus
from herdsman_trainer.artifacts import open_input, read_manifest
from herdsman_trainer.errors import StepError
from herdsman_trainer.prompts import PromptTemplate

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
TRY_AGAIN = 30
"""Looks after which what could not be loaded is tried again."""
LONGEST_MESSAGE = 1024


class HotLoader(Protocol):
    """Whatever has adapters beside a model."""

    def load(self, name: str, directory: Path) -> None:
        """Make an adapter available by its name; BadInput where it does not fit, Temporary where there is no room."""

    def unload(self, name: str) -> None:
        """Drop it, once the answers that are made with it are complete."""


class _Wanted(NamedTuple):
    """What makes an entry another one."""

    path: str
    digest: str | None


class HotAdapters:
    """Keeps the adapters of a loader as a file says; `loaded` is what requests may choose."""

    def __init__(
        self,
        file: Path,
        loader: HotLoader,
        template_of: Callable[[str | None], PromptTemplate],
        report: Path | None = None,
    ) -> None:
        """Know nothing yet; `template_of` makes a template of the name that an adapter's manifest has."""
        self.loaded: Mapping[str, PromptTemplate] = {}
        """Adapters by name, with the prompt template of each."""
        self._file = file
        self._loader = loader
        self._template_of = template_of
        self._report = report
        self._have: dict[str, _Wanted] = {}
        self._failed: dict[str, tuple[_Wanted, str]] = {}
        self._names: list[str] = []
        self._read: bytes | None = None
        self._looks = 0
        self._stopped = threading.Event()

    def start(self) -> None:
        """Look once, and then again and again from a thread of its own."""
        self.follow()
        threading.Thread(target=self._run, name="adapters", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def report(self) -> AdapterReport:
        """Return how each adapter of the list is."""
        told = []
        for name in self._names:
            failure = self._failed.get(name)
            message = failure[1][:LONGEST_MESSAGE] if failure is not None else None
            told.append(AdapterStatus(name=name, loaded=name in self.loaded, message=message))
        return AdapterReport(adapters=told)

    def follow(self) -> None:
        """Look at the list once and do what it says."""
        self._looks += 1
        try:
            content = self._file.read_bytes()
        except OSError as error:
            log.warning("The list of adapters cannot be read (%s); they stay as they were.", error.strerror)
            return
        if content == self._read and not (self._failed and self._looks % TRY_AGAIN == 0):
            return
        try:
            listed = AdapterList.model_validate_json(content).adapters
        except ValidationError as error:
            log.error("The list of adapters is not valid (%s); they stay as they were.", error.errors()[0]["msg"])
            self._read = content
            return
        self._read = content
        self._make_true(listed)
        self._tell()

    def _make_true(self, listed: list[ListedAdapter]) -> None:
        wanted = {each.name: (_wanted(each), each) for each in listed}
        self._names = list(wanted)
        self._failed = {name: told for name, told in self._failed.items() if name in wanted}
        for name, have in list(self._have.items()):
            if name not in wanted or wanted[name][0] != have:
                self.loaded = {other: template for other, template in self.loaded.items() if other != name}
                del self._have[name]
                self._unload(name)
        for name, (key, entry) in wanted.items():
            if name not in self._have:
                self._load(name, key, entry)

    def _load(self, name: str, key: _Wanted, entry: ListedAdapter) -> None:
        try:
            directory = open_input(entry.source)
            manifest = read_manifest(directory)
            template = self._template_of(manifest.artifact.prompt_template if manifest is not None else None)
            self._loader.load(name, directory)
        except Exception as error:  # noqa: BLE001 - one adapter's fault stops neither the server nor the others
            message = str(error) if isinstance(error, StepError) else f"{type(error).__name__}: {error}"
            if self._failed.get(name) != (key, message):
                log.warning("The adapter %s is not loaded: %s", name, message)
            self._failed[name] = (key, message)
            return
        self._failed.pop(name, None)
        self._have[name] = key
        self.loaded = {**self.loaded, name: template}
        log.info("The adapter %s is loaded.", name)

    def _unload(self, name: str) -> None:
        try:
            self._loader.unload(name)
            log.info("The adapter %s is unloaded.", name)
        except Exception:
            log.exception("The adapter %s could not be unloaded.", name)

    def _tell(self) -> None:
        if self._report is None:
            return
        draft = self._report.with_name(f".{self._report.name}.tmp")
        try:
            draft.write_text(self.report().model_dump_json(by_alias=True), encoding="utf-8")
            draft.replace(self._report)
        except OSError as error:
            log.warning("The report of the adapters cannot be written: %s", error.strerror)

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            try:
                self.follow()
            except Exception:
                log.exception("Looking after the adapters failed; it is tried again.")


def _wanted(entry: ListedAdapter) -> _Wanted:
    return _Wanted(entry.source.path, entry.source.artifact.digest if entry.source.artifact is not None else None)
