"""MLflow: one run for all attempts, found by a tag with the resource's uid."""

import os
import time
from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.entities import Metric

from herdsman.api.v1alpha1.report_to import MlflowTracker as Settings
from herdsman_trainer.trackers import TrackedRun

UID_TAG = "herdsman.uid"
PARAMETERS_AT_ONCE = 100
"""What the server takes in one request."""
TIMEOUTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}
"""The library would try for minutes; what the environment says wins."""


class MlflowTracker:
    """Token, or name and password, are in the environment, where the library looks for them."""

    def __init__(self, settings: Settings, run: TrackedRun) -> None:
        for name, value in TIMEOUTS.items():
            os.environ.setdefault(name, value)
        self._client: Any = mlflow.MlflowClient(tracking_uri=settings.tracking_uri)
        known = self._client.get_experiment_by_name(settings.experiment)
        experiment = known.experiment_id if known is not None else self._client.create_experiment(settings.experiment)
        found = self._client.search_runs([experiment], f"tags.`{UID_TAG}` = '{run.uid}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {UID_TAG: run.uid, "herdsman.kind": run.kind}
        self._id = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        parameters = [mlflow.entities.Param(name, str(value)[:6000]) for name, value in run.settings.items()]
        for start in range(0, len(parameters), PARAMETERS_AT_ONCE):
            self._client.log_batch(self._id, params=parameters[start : start + PARAMETERS_AT_ONCE])

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Send the figures in one request."""
        now = round(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in figures.items()])

    def say(self, step: int, name: str, text: str) -> None:
        """Send nothing: texts are in the report."""

    def close(self, *, done: bool) -> None:
        """End the run; one that was interrupted is taken up by its next attempt."""
        self._client.set_terminated(self._id, status="FINISHED" if done else "KILLED")


def open_tracker(settings: Settings, run: TrackedRun) -> MlflowTracker:
    """Start or take up the run."""
    return MlflowTracker(settings, run)
