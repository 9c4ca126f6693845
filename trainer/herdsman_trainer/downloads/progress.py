"""How far a download is, in bytes."""

import time
from collections.abc import Callable, Mapping

from herdsman_trainer.downloads.patience import Run
from herdsman_trainer.downloads.remote_files import amount

DOWNLOADING = 0.8
"""The share of an import's work that downloading is."""
REPORT_SECONDS = 1.0
_NAME_LENGTH = 60


class DownloadProgress:
    """Reports all files of a download as one piece of work."""

    def __init__(
        self, run: Run, sizes: Mapping[str, int | None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run = run
        self._sizes = dict(sizes)
        self._done = dict.fromkeys(sizes, 0)
        self._clock = clock
        self._reported = -float("inf")
        self.received = 0
        """Bytes of files that are finished."""

    def of(self, name: str) -> Callable[[int, int | None], None]:
        """Return what hears how much of a file is there."""

        def on_bytes(done: int, size: int | None) -> None:
            self._run.raise_if_stopped()
            self._done[name] = done
            self._sizes[name] = size
            if self._clock() - self._reported >= REPORT_SECONDS or done == size:
                self._reported = self._clock()
                self._run.report(activity=f"downloading {_short(name)} ({amount(done, size)})", done=self._share())

        return on_bytes

    def waits(self, name: str) -> None:
        """Say that another import downloads a file."""
        self._run.report(activity=f"waiting for another import that downloads {_short(name)}")

    def finished(self, name: str, size: int) -> None:
        """A file is complete."""
        self._done[name] = self._sizes[name] = size
        self.received += size

    def _share(self) -> float:
        """Return the share of the import that is done; a file of unknown size counts as the mean of the others."""
        known = [size for size in self._sizes.values() if size is not None]
        mean = sum(known) / len(known) if known else 0.0
        total = sum(mean if size is None else size for size in self._sizes.values())
        return DOWNLOADING * min(1.0, sum(self._done.values()) / total) if total else 0.0


def _short(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"…{name[-_NAME_LENGTH:]}"
