"""What a step knows of the run around it: its directory, its voice, and whether it should stop."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from herdsman.api.job_config import FileDigest, RunConfig
from herdsman.api.v1alpha1.status import Artifact, CheckpointStatus, DataFigures
from herdsman_trainer.artifacts import draft_artifact, publish_artifact, published_artifact, take_up_draft
from herdsman_trainer.endpoints import Endpoints
from herdsman_trainer.errors import Interrupted
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.metrics import Gauges, ProgressFile, metric, rank_of_environment
from herdsman_trainer.ownership import begin_attempt, claim_workspace
from herdsman_trainer.progress_log import ProgressLog
from herdsman_trainer.run_records import RunRecords
from herdsman_trainer.trackers import Trackers

_NO_FIGURES = frozenset({"step", "time", "attempt", "event"})
"""Members of a record that trackers are not told as figures."""


class RunContext:
    """One attempt of one run. Only rank 0 writes: on other ranks reports go nowhere.

    Claims the workspace; raises BadInput (PathConflict) where it belongs to another resource.
    """

    def __init__(
        self, config: RunConfig, *, rank: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self.rank = rank_of_environment() if rank is None else rank
        self.workspace: Path = claim_workspace(config)
        if self.rank == 0:
            begin_attempt(self.workspace, config.attempt)
        self.clock = clock
        self.resumed_from_step: int | None = None
        """The checkpoint's step this attempt continues from; None for a fresh start."""
        self.closing_words = ""
        """What there is to say of a success, such as that it is less than was wanted; a sentence."""
        self.records = RunRecords(self.workspace)
        self.trackers = Trackers({})
        """Who hears of every step beside the records; a training opens them."""
        self._progress = ProgressFile(self.workspace, clock)
        self._gauges = Gauges({"idle_seconds": HEART.idle_seconds})
        self._log = ProgressLog(clock)
        self._checkpoint: CheckpointStatus | None = None
        self._endpoints: Endpoints | None = None
        if config.metrics_port and self.rank == 0:
            self._endpoints = Endpoints(config.metrics_port, self._gauges.registry, self.progress_document)
        self._work_dir: Path | None = None
        self._stop = False

    @property
    def step(self) -> int:
        """The step last reported."""
        return self._progress.state.step

    @property
    def checkpoint(self) -> CheckpointStatus | None:
        """The newest checkpoint that was found or made, on rank 0."""
        return self._checkpoint

    @property
    def checkpoints_dir(self) -> Path:
        """Where checkpoints are kept."""
        return self.workspace / "checkpoints"

    @property
    def cache_dir(self) -> Path:
        """Where tokenised data is kept, addressed by its content."""
        return self.workspace / "cache" / "tokens"

    @property
    def work_dir(self) -> Path:
        """An empty directory to build the artifact in, on the same file system as its place; made on first use."""
        if self._work_dir is None:
            self._work_dir = draft_artifact(self.config)
        return self._work_dir

    def take_up_work_dir(self) -> Path:
        """Return `work_dir` with what an earlier attempt of this resource has left in it, instead of an empty one."""
        self._work_dir = take_up_draft(self.config)
        return self._work_dir

    def report(
        self,
        *,
        activity: str | None = None,
        step: int | None = None,
        total_steps: int | None = None,
        done: float | None = None,
        tokens_per_second: float | None = None,
        loss_curve: str | None = None,
        metrics: Mapping[str, float | str] | None = None,
        data: DataFigures | None = None,
    ) -> None:
        """Say how far the work is; None changes nothing. Written once a second at most, a new activity at once.

        Steps are a training's optimizer steps; other work says which share of it is `done`, 0 to 1. On every rank this
        is a sign of progress.
        """
        HEART.beat(activity=activity, step=step)
        figures = dict(metrics or {})
        changes: dict[str, Any] = {"activity": activity[:128] if activity else None, "step": step}
        changes |= {"total_steps": total_steps, "loss_curve": loss_curve, "data": data}
        if tokens_per_second is not None:
            changes["tokens_per_second"] = round(tokens_per_second)
            self._gauges.set({"tokens_per_second": tokens_per_second})
        changes = {name: value for name, value in changes.items() if value is not None}
        if self.rank == 0:
            new = activity is not None and activity != self._progress.state.activity
            self._progress.update(changes, figures, done=done, force=new)
            remaining = self._progress.state.estimated_remaining_seconds
            known = {"remaining_seconds": remaining} if remaining is not None else {}
            self._gauges.set({**figures, **known, "step": self.step, "progress_ratio": self._progress.done})
            self._log.tell(self._progress.state)

    def record(self, line: Mapping[str, Any]) -> None:
        """Write down a step, an evaluation or an event (a line with its `step`) and tell the trackers; for rank 0."""
        line = {**line, "time": round(time.time(), 1)}
        self.records.metrics.append(line)
        figures = {name: value for name, value in line.items() if name not in _NO_FIGURES and _is_figure(value)}
        if figures:
            self.trackers.log(int(line["step"]), figures)

    def flush(self) -> None:
        """Write progress.json now."""
        if self.rank == 0:
            self._progress.update({}, {}, force=True)

    def report_checkpoint(self, status: CheckpointStatus, saved_at: datetime) -> None:
        """Say which checkpoints there are and when the newest one was made; for rank 0."""
        self._checkpoint = status
        self._log.tell_checkpoint(status)
        self.report(metrics={"checkpoint_timestamp_seconds": int(saved_at.timestamp())})

    def progress_document(self) -> bytes:
        """Return what /progress answers: the Progress as JSON, and the CheckpointStatus as its member `checkpoint`."""
        document = self._progress.state.to_json()
        if (checkpoint := self._checkpoint) is not None:
            document["checkpoint"] = checkpoint.to_json()
        return json.dumps(document).encode()

    def request_stop(self) -> None:
        """Ask the step to save and stop; a signal handler may call this."""
        self._stop = True

    def should_stop(self) -> bool:
        """Whether this process was asked to stop; several ranks agree on it before they act."""
        return self._stop

    def raise_if_stopped(self) -> None:
        """Raise Interrupted if a stop was asked for; steps that do not train call this between pieces of their work,
        so it is a sign of progress too.
        """
        HEART.beat()
        if self._stop:
            raise Interrupted("Stopped on request.", hint="The next attempt continues with what was saved.")

    def published(self) -> Artifact | None:
        """Return the artifact an earlier attempt of this resource finished, if it is there and whole."""
        return published_artifact(self.config)

    def publish(
        self,
        *,
        kind: Literal["model", "tokenizer", "adapter", "dataset", "report"],
        source_dir: Path,
        vocab_size: int | None = None,
        tokenizer_digest: str | None = None,
        base_digest: str | None = None,
        parents: Sequence[str] = (),
        dtype: str | None = None,
        prompt_template: str | None = None,
        formats: Sequence[Literal["huggingface", "pth", "gguf"]] = (),
        inputs: Mapping[str, str] | None = None,
        report: Mapping[str, float | str] | None = None,
        known: Mapping[str, FileDigest] | None = None,
        pages: Callable[[Artifact], Mapping[str, bytes]] | None = None,
    ) -> Artifact:
        """Make `source_dir` the run's artifact in one rename and return its contract.

        `inputs` are digests of what it was made from, by field of the spec; `known` digests of files already taken;
        `pages` makes the report, which is no part of the artifact's digest.
        """
        return publish_artifact(
            self.config,
            source_dir,
            kind=kind,
            inputs=inputs,
            report=[metric(name, value) for name, value in (report or {}).items()],
            known=known,
            pages=pages,
            vocab_size=vocab_size,
            tokenizer_digest=tokenizer_digest,
            base_digest=base_digest,
            parents=list(parents),
            dtype=dtype,
            prompt_template=prompt_template,
            formats=list(formats),
        )

    def close(self, *, done: bool = False) -> None:
        """Write the last progress, let the trackers end and stop serving; `done` says whether the work is finished."""
        self.flush()
        self.trackers.close(done=done)
        if self._endpoints is not None:
            self._endpoints.close()
            self._endpoints = None


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
