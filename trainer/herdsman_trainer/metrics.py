"""What a run says while it works: progress.json and Prometheus gauges.

| gauge | meaning |
| --- | --- |
| herdsman_train_loss | mean training loss of the last step, in nats per target token |
| herdsman_train_learning_rate | learning rate of the last step |
| herdsman_train_grad_norm | norm of the last step's gradient before clipping |
| herdsman_train_tokens_per_second | tokens trained per second, all ranks together |
| herdsman_train_step | optimizer steps done |
| herdsman_train_progress_ratio | share of the work that is done, 0 to 1 |
| herdsman_train_records | InstructionSet: records kept so far |
| herdsman_train_records_dropped | InstructionSet: records dropped so far |
| herdsman_train_requests | InstructionSet: replies of the endpoint so far |
| herdsman_train_request_tokens | InstructionSet: tokens of requests and replies so far |
| herdsman_train_cost | InstructionSet: what they cost by spec.generate.price |
| herdsman_train_gpu_memory_bytes | peak memory of rank 0's GPU |
| herdsman_train_checkpoint_timestamp_seconds | Unix time of the newest verified checkpoint |
| herdsman_train_mfu | model FLOPs utilisation of the last step, 0 to 1; none on the CPU |
| herdsman_train_remaining_seconds | time to go at this attempt's mean speed |
| herdsman_train_heldout_loss | held-out loss of the last evaluation, in nats per target token |
| herdsman_train_steps_not_finite | steps passed over because their loss or gradient was not finite |
| herdsman_train_rewinds | how often the run went back to a checkpoint |
| herdsman_train_idle_seconds | time since rank 0's last sign of progress; spec.stallSeconds ends the attempt |
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from herdsman.api.v1alpha1.status import Metric, Progress

PROGRESS_FILE = "progress.json"
PROGRESS_SECONDS = 1.0
"""progress.json is written at most this often."""

GAUGES: Mapping[str, str] = {
    "loss": "Mean training loss of the last step, in nats per target token.",
    "learning_rate": "Learning rate of the last step.",
    "grad_norm": "Norm of the last step's gradient before clipping.",
    "tokens_per_second": "Tokens trained per second, all ranks together.",
    "step": "Optimizer steps done.",
    "progress_ratio": "Share of the work that is done, 0 to 1.",
    "records": "Records kept so far.",
    "records_dropped": "Records dropped so far.",
    "requests": "Replies of the endpoint so far.",
    "request_tokens": "Tokens of requests and replies so far.",
    "cost": "What they cost by spec.generate.price.",
    "gpu_memory_bytes": "Peak memory of rank 0's GPU.",
    "checkpoint_timestamp_seconds": "Unix time of the newest verified checkpoint.",
    "mfu": "Model FLOPs utilisation of the last step, 0 to 1.",
    "remaining_seconds": "Time to go at this attempt's mean speed.",
    "heldout_loss": "Held-out loss of the last evaluation, in nats per target token.",
    "steps_not_finite": "Steps passed over because their loss or gradient was not finite.",
    "rewinds": "How often the run went back to a checkpoint.",
    "idle_seconds": "Time since rank 0's last sign of progress; spec.stallSeconds ends the attempt.",
}
"""The gauges by name without their prefix `herdsman_train_`."""

_log = logging.getLogger(__name__)


def metric(name: str, value: float | str) -> Metric:
    """Return a named figure as the API carries it: a decimal string of six significant digits, integers in full."""
    text = value if isinstance(value, str) else str(value) if isinstance(value, int) else f"{value:.6g}"
    return Metric(name=name[:64], value=text[:32])


class ProgressFile:
    """`progress.json`, replaced atomically so that a reader never sees half of it.

    It is for people and the operator: a volume that cannot take it, because it is full for example, is no fault of it.
    """

    def __init__(self, workspace: Path, clock: Callable[[], float]) -> None:
        self._path = workspace / PROGRESS_FILE
        self._clock = clock
        self._written = -float("inf")
        self._began: tuple[float, float] | None = None
        self._done = 0.0
        self._state = Progress()
        self._failed = False

    @property
    def state(self) -> Progress:
        """What was last reported."""
        return self._state

    @property
    def done(self) -> float:
        """The share of the work that is done, 0 to 1."""
        return self._done

    def update(
        self,
        changes: Mapping[str, Any],
        figures: Mapping[str, float | str],
        *,
        done: float | None = None,
        force: bool = False,
    ) -> None:
        """Merge `changes` (fields of Progress) and `figures` into the state, and write it if a second has passed.

        `done` is the share of the work that is done, 0 to 1; None takes it from step and total_steps.
        """
        known = {item.name: item for item in self._state.metrics}
        known |= {name: metric(name, value) for name, value in figures.items()}
        state = self._state.model_copy(update={**changes, "metrics": list(known.values())[:20]})
        self._state = state.model_copy(
            update={**self._derived(state, done), "last_updated_time": datetime.now(UTC).replace(microsecond=0)}
        )
        if force or self._clock() - self._written >= PROGRESS_SECONDS:
            self._write()

    def _derived(self, state: Progress, done: float | None) -> dict[str, Any]:
        """Percent and remaining time; the speed is the mean of this attempt."""
        again = state.total_steps != self._state.total_steps
        if done is None and self._began is None and not state.total_steps:
            return {}  # nothing is counted yet, so nothing has a speed
        if done is None:
            done = state.step / state.total_steps if state.total_steps else self._done
        done = min(1.0, max(0.0, done))
        if self._began is None or again or done < self._done or done <= self._began[1]:
            self._began = self._clock(), done  # what is done before the count begins to move is no part of its speed
        self._done = done
        start, first = self._began
        remaining = None
        if done > first:
            remaining = round((self._clock() - start) / (done - first) * (1 - done))
        # The smallest float error must not take a whole percent away: 0.29 * 100 is less than 29.
        return {"percent": int(100 * done + 1e-9), "estimated_remaining_seconds": remaining}

    def _write(self) -> None:
        self._written = self._clock()
        draft = self._path.with_name(f".{PROGRESS_FILE}.tmp")
        try:
            draft.write_bytes(self._state.model_dump_json(by_alias=True, exclude_none=True).encode())
            draft.replace(self._path)
        except OSError as error:
            if not self._failed:
                _log.warning("The progress cannot be written to %s: %s", self._path, error.strerror)
            self._failed = True


class Gauges(Collector):
    """The Prometheus gauges that have a value; one that was never set is left out, rather than told as 0."""

    def __init__(self, clocks: Mapping[str, Callable[[], float]] | None = None) -> None:
        self.registry = CollectorRegistry()
        self._values: dict[str, float] = {}
        self._clocks = dict(clocks or {})
        self.registry.register(self)

    def set(self, figures: Mapping[str, float | str]) -> None:
        """Set the gauges that exist among `figures`; other names have no gauge and are left out."""
        for name, value in figures.items():
            if name in GAUGES and not isinstance(value, str):
                self._values[name] = value

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return the gauges as they are now; `clocks` are asked."""
        values = {**self._values, **{name: clock() for name, clock in self._clocks.items()}}
        for name, value in values.items():
            yield GaugeMetricFamily(f"herdsman_train_{name}", GAUGES[name], value)


def rank_of_environment() -> int:
    """Return this process's rank among those of the run: RANK, or 0 for a single process."""
    return int(os.environ.get("RANK", "0"))
