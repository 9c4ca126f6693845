"""The contract between a trainer container and whoever runs it: exit codes and the termination message."""

from enum import IntEnum

from pydantic import Field

from herdsman.api.meta import ApiModel
from herdsman.api.v1alpha1.status import Artifact, CheckpointStatus, Metric

MAX_TERMINATION_BYTES = 4096
"""Kubernetes keeps at most this much of a container's termination message."""


class ExitCode(IntEnum):
    """What the end of a trainer process means."""

    DONE = 0
    """The artifact is complete."""
    BAD_INPUT = 42
    """The spec or an input is wrong; a retry would end the same way."""
    DIVERGED = 43
    """The loss is not finite, or ran away; a retry would end the same way."""
    INTERRUPTED = 75
    """Stopped on request, or a temporary fault; a retry continues from the newest checkpoint."""


PERMANENT = frozenset({ExitCode.BAD_INPUT, ExitCode.DIVERGED})
"""Exit codes that are never retried."""


class TerminationMessage(ApiModel):
    """The last words of a trainer, as JSON in the termination file."""

    reason: str = Field(max_length=64)
    """One CamelCase word: Succeeded, BadInput, ChecksumMismatch, Diverged, Interrupted, DiskFull, ..."""
    message: str = ""
    """What is wrong, in one sentence."""
    hint: str | None = None
    """What to do about it."""
    file: str | None = None
    """The input file the message is about."""
    line: int | None = None
    """The line in that file, counted from 1."""
    step: int | None = None
    """The optimizer step reached."""
    resumed_from_step: int | None = None
    """The checkpoint's step this attempt started from; none for a fresh start."""
    checkpoint: CheckpointStatus | None = None
    """The newest verified checkpoint, of which the platform would otherwise know what it last asked for."""
    artifact: Artifact | None = None
    """The finished artifact, with exit code 0."""
    report: list[Metric] = Field(default_factory=list)
    """The figures of the finished artifact, the telling ones first."""

    def to_bytes(self) -> bytes:
        """Serialise to at most MAX_TERMINATION_BYTES bytes of JSON; the report gives way first, then the message."""
        cut = self
        while len(data := cut.model_dump_json(by_alias=True, exclude_defaults=True).encode()) > MAX_TERMINATION_BYTES:
            if cut.report:
                cut = cut.model_copy(update={"report": cut.report[:-1]})
                continue
            over = len(data) - MAX_TERMINATION_BYTES
            if len(cut.message) <= 1:
                return data[:MAX_TERMINATION_BYTES]
            keep = max(1, len(cut.message) - max(over // 4, 16))
            cut = cut.model_copy(update={"message": cut.message[: keep - 1] + "…"})
        return data
