"""Weights & Biases: one run for all attempts, found by the resource's uid."""

from collections.abc import Mapping
from typing import Any

import wandb

from herdsman.api.v1alpha1.report_to import WandbTracker as Settings
from herdsman_trainer.trackers import TrackedRun

UPLOAD_SECONDS = 15.0
"""What the end of a run waits for the upload; what is left stays in the workspace for `wandb sync`."""
CONNECT_SECONDS = 60.0


class WandbTracker:
    """The key is in the environment, WANDB_API_KEY, where the library looks for it."""

    def __init__(self, settings: Settings, run: TrackedRun) -> None:
        self._run: Any = wandb.init(
            project=settings.project,
            entity=settings.entity,
            id=run.uid,
            name=run.name,
            group=run.kind,
            resume="allow",
            dir=str(run.workspace),
            config=dict(run.settings),
            mode="offline" if settings.offline else "online",
            settings=wandb.Settings(
                base_url=settings.base_url or "https://api.wandb.ai",
                init_timeout=CONNECT_SECONDS,
                finish_timeout=UPLOAD_SECONDS,
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                x_disable_stats=True,
            ),
        )
        # Its own count of calls never goes back, and the steps of a resumed run do.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Send the figures."""
        self._run.log({"step": step, **figures})

    def say(self, step: int, name: str, text: str) -> None:
        """Send nothing: texts are in the report."""

    def close(self, *, done: bool) -> None:
        """End the run; one that was interrupted is marked as failed until its next attempt takes it up."""
        self._run.finish(exit_code=0 if done else 1)


def open_tracker(settings: Settings, run: TrackedRun) -> WandbTracker:
    """Start or resume the run."""
    return WandbTracker(settings, run)
