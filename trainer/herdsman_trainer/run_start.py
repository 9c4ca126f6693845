"""The beginning of an attempt, written down: when, from which step, on what; and the trackers are told of the run."""

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from herdsman_trainer.distributed import Processes
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.trackers import TrackedRun, flat, open_trackers
from herdsman_trainer.training_inputs import TrainingJob, stage_of


def begin_records(
    config: TrainingJob, context: RunContext, processes: Processes, step: int, resumed_from: int | None
) -> None:
    """Note the attempt and open the trackers, on rank 0."""
    if not processes.is_first:
        return
    context.records.attempts.append(
        {
            "step": step,
            "attempt": config.attempt,
            "resumed_from_step": resumed_from,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "nodes": config.launch.nodes,
            "processes": processes.world_size,
            "device": device_name(processes.device),
            "torch": torch.__version__,
            "herdsman": version("herdsman"),
        }
    )
    owner = config.owner
    context.trackers = open_trackers(
        config.report_to,
        TrackedRun(
            uid=owner.uid,
            kind=owner.kind,
            name=owner.name if owner.namespace == "default" else f"{owner.namespace}/{owner.name}",
            attempt=config.attempt,
            workspace=context.workspace,
            resumed_from_step=resumed_from,
            settings=settings(config, processes.world_size),
        ),
    )


def device_name(device: torch.device) -> str:
    """Return what is computed on, for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def settings(config: TrainingJob, world_size: int) -> dict[str, Any]:
    """Return what decides the run, flat, by the names of the manifest."""
    recipe = config.recipe.model_dump(mode="json", by_alias=True, exclude={"samples": {"prompts"}})
    return {"stage": stage_of(config), "processes": world_size, **flat(recipe)}
