"""What a run says while it works: progress.json, metrics.jsonl and Prometheus gauges.

| gauge | meaning |
| --- | --- |
| herdsman_train_loss | mean training loss of the last step, in nats per target token |
| herdsman_train_learning_rate | learning rate of the last step |
| herdsman_train_grad_norm | norm of the last step's gradient before clipping |
| herdsman_train_tokens_per_second | tokens trained per second, all ranks together |
| herdsman_train_step | optimizer steps done |
| herdsman_train_progress_ratio | share of the work that is done, 0 to 1 |
| herdsman_train_gpu_memory_bytes | peak memory of rank 0's GPU |
| herdsman_train_checkpoint_timestamp_seconds | Unix time of the newest verified checkpoint |
"""

import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from herdsman.api.v1alpha1.status import Metric, Progress

PROGRESS_FILE = "progress.json"
METRICS_FILE = "metrics.jsonl"
PROGRESS_SECONDS = 1.0
"""progress.json is written at most this often."""

GAUGES: Mapping[str, str] = {
    "loss": "Mean training loss of the last step, in nats per target token.",
    "learning_rate": "Learning rate of the last step.",
    "grad_norm": "Norm of the last step's gradient before clipping.",
    "tokens_per_second": "Tokens trained per second, all ranks together.",
    "step": "Optimizer steps done.",
    "progress_ratio": "Share of the work that is done, 0 to 1.",
    "gpu_memory_bytes": "Peak memory of rank 0's GPU.",
    "checkpoint_timestamp_seconds": "Unix time of the newest verified checkpoint.",
}
"""The gauges by name without their prefix `herdsman_train_`."""


def metric(name: str, value: float | str) -> Metric:
    """Return a named figure as the API carries it: a decimal string of six significant digits, integers in full."""
    text = value if isinstance(value, str) else str(value) if isinstance(value, int) else f"{value:.6g}"
    return Metric(name=name[:64], value=text[:32])


class ProgressFile:
    """`progress.json`, replaced atomically so that a reader never sees half of it."""

    def __init__(self, workspace: Path, clock: Callable[[], float]) -> None:
        self._path = workspace / PROGRESS_FILE
        self._clock = clock
        self._written = -float("inf")
        self._began: tuple[float, int] | None = None
        self._state = Progress()

    @property
    def state(self) -> Progress:
        """What was last reported."""
        return self._state

    def update(self, changes: Mapping[str, Any], figures: Mapping[str, float | str], *, force: bool = False) -> None:
        """Merge `changes` (fields of Progress) and `figures` into the state, and write it if a second has passed."""
        known = {item.name: item for item in self._state.metrics}
        known |= {name: metric(name, value) for name, value in figures.items()}
        state = self._state.model_copy(update={**changes, "metrics": list(known.values())[:20]})
        self._state = state.model_copy(update=self._derived(state))
        if force or self._clock() - self._written >= PROGRESS_SECONDS:
            self._write()

    def _derived(self, state: Progress) -> dict[str, Any]:
        """Percent and remaining time; the speed is the mean since this attempt's first step of the present count."""
        if not state.total_steps:
            return {"percent": 0, "estimated_remaining_seconds": None}
        if self._began is None or state.step < self._began[1] or state.total_steps != self._state.total_steps:
            self._began = self._clock(), state.step
        start, first = self._began
        remaining = None
        if state.step > first:
            remaining = round((self._clock() - start) / (state.step - first) * max(0, state.total_steps - state.step))
        return {"percent": min(100, 100 * state.step // state.total_steps), "estimated_remaining_seconds": remaining}

    def _write(self) -> None:
        self._written = self._clock()
        self._state = self._state.model_copy(update={"last_updated_time": datetime.now(UTC)})
        draft = self._path.with_name(f".{PROGRESS_FILE}.tmp")
        draft.write_bytes(self._state.model_dump_json(by_alias=True, exclude_none=True).encode())
        draft.replace(self._path)


class MetricsLog:
    """`metrics.jsonl`: one line for each step, also after restarts."""

    def __init__(self, workspace: Path) -> None:
        self._path = workspace / METRICS_FILE

    def append(self, line: Mapping[str, Any]) -> None:
        """Append one line; values that are not finite become null, because JSON has no NaN."""
        clean = {key: _json_value(value) for key, value in line.items()}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(clean) + "\n")

    def drop_after(self, step: int) -> None:
        """Remove the lines of steps that a resumed run will do again, and a last line that was cut by a crash."""
        if not self._path.is_file():
            return
        kept = [line for line in self._path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        draft = self._path.with_name(f".{METRICS_FILE}.tmp")
        draft.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        draft.replace(self._path)


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and (value != value or abs(value) == float("inf")) else value


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Gauges:
    """The Prometheus gauges, served on a port of their own by a background thread; port 0 serves nothing."""

    def __init__(self, port: int) -> None:
        self.registry = CollectorRegistry()
        self._gauges = {
            name: Gauge(f"herdsman_train_{name}", text, registry=self.registry) for name, text in GAUGES.items()
        }
        self._server = start_http_server(port, registry=self.registry)[0] if port else None

    def set(self, figures: Mapping[str, float | str]) -> None:
        """Set the gauges that exist among `figures`; other names have no gauge and are left out."""
        for name, value in figures.items():
            if name in self._gauges and not isinstance(value, str):
                self._gauges[name].set(value)

    def close(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def rank_of_environment() -> int:
    """Return this process's rank among those of the run: RANK, or 0 for a single process."""
    return int(os.environ.get("RANK", "0"))
