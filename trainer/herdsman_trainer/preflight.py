"""The preflight of a training on GPUs, in one process on a CPU: what can be wrong is found, the data is made ready.

It goes the way of the training itself as far as that needs no values: the same inputs, the same model and adapters on
the device `meta`, the same data in the same cache, the same checkpoints. So what it lets pass the training lets pass.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from herdsman_trainer.checkpoints import FREE_SPACE_FACTOR, CheckpointStore, Identity
from herdsman_trainer.computation import global_batch, spreads
from herdsman_trainer.deepspeed_engine import check_installed
from herdsman_trainer.distributed import Processes
from herdsman_trainer.errors import Temporary
from herdsman_trainer.free_space import ARTIFACT_MARGIN, free_bytes, size_text
from herdsman_trainer.lora import TrainedModel
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.sequence_order import GlobalBatch
from herdsman_trainer.step_budget import planned_steps
from herdsman_trainer.tokenizers import TextTokenizer, load_tokenizer
from herdsman_trainer.trackers import check_libraries
from herdsman_trainer.training_inputs import (
    TrainingInputs,
    TrainingJob,
    assemble,
    heard_by,
    open_training_inputs,
    sequence_length,
    stage_of,
)
from herdsman_trainer.training_run import TrainingData, check_held_out, recipe_digest
from herdsman_trainer.training_state import state_bytes
from herdsman_trainer.weights.merge import EMBEDDING
from herdsman_trainer.weights.reading import open_model_weights

DataOf = Callable[[TrainingInputs, TextTokenizer], TrainingData]


@dataclass(frozen=True)
class Room:
    """What a training writes beside its data."""

    checkpoint: int
    """Bytes of one checkpoint."""
    kept: int
    """Checkpoints that are kept; one more is there while it is written."""
    artifact: int
    """Bytes of the result, which is written when all checkpoints are there."""

    @property
    def needed(self) -> int:
        """Bytes at the fullest moment, with the margins that are asked for before each of them is written."""
        return self.kept * self.checkpoint + math.ceil(
            max(FREE_SPACE_FACTOR * self.checkpoint, ARTIFACT_MARGIN * self.artifact)
        )


def prepare(config: TrainingJob, context: RunContext, data_of: DataOf) -> None:
    """Check inputs, vocabulary, adapter, batch, checkpoints and free space, and make the data ready; publish nothing.

    BadInput for what no retry mends, as the training would raise it; Temporary (DiskFull) where the volume is too
    small. Space is asked for before hours of tokenising, and again after them.
    """
    assert config.preflight is not None
    batch = _batch(config)
    check_libraries(config.report_to)
    context.report(activity="checking the inputs")
    inputs = open_training_inputs(config, heard_by(context))
    tokenizer = load_tokenizer(inputs.tokenizer)
    model = assemble(config, inputs, tokenizer, torch.device("meta"))
    require_room(context.checkpoints_dir, room(config, inputs, model, config.recipe.max_steps or 1))

    data = data_of(inputs, tokenizer)

    recipe = config.recipe
    steps = planned_steps(recipe, data.train, batch.sequences, data.mixture)
    identity = Identity(recipe_digest(config, inputs, data), config.attempt)
    check_held_out(config, data)
    checkpoint = CheckpointStore(
        context.checkpoints_dir, Processes(), identity, recipe.checkpoints.keep_last or 1
    ).newest()
    require_room(context.checkpoints_dir, room(config, inputs, model, steps))
    done = checkpoint.manifest.step if checkpoint else 0
    context.report(activity="inputs checked, data ready", step=done, total_steps=steps)


def room(config: TrainingJob, inputs: TrainingInputs, model: TrainedModel, steps: int) -> Room:
    """Return what a training of so many steps writes, from the shapes of its model."""
    recipe = config.recipe.checkpoints
    made = math.ceil(steps / (recipe.every_steps or steps))
    shapes = {name: item.shape for name, item in model.trained.items()}
    if stage_of(config) == "Full":
        with open_model_weights(inputs.model) as weights:
            item_bytes = weights.specs[EMBEDDING].dtype.itemsize
    else:
        shapes = {name: shape for name, shape in shapes.items() if ".lora_" in name}
        shapes |= {name: item.shape for name, item in model.kept.items()}
        item_bytes = torch.float32.itemsize
    return Room(
        checkpoint=state_bytes({name: item.shape for name, item in model.trained.items()}),
        kept=min(made, recipe.keep_last or 1) + recipe.best,
        artifact=item_bytes * sum(shape.numel() for shape in shapes.values()),
    )


def require_room(checkpoints: Path, room: Room) -> None:
    """Raise Temporary (DiskFull) with the figures where the volume has too little space for them.

    Checkpoints that are there already, of attempts before, count as space.
    """
    there = sum(path.stat().st_size for path in checkpoints.rglob("*") if path.is_file()) if checkpoints.is_dir() else 0
    free = free_bytes(checkpoints.parent)
    if free is None or free + there >= room.needed:
        return
    raise Temporary(
        f"The volume has too little space for the training: {size_text(free)} are free, and "
        f"{size_text(room.needed)} are needed for {room.kept + 1} checkpoints of {size_text(room.checkpoint)} and an "
        f"artifact of {size_text(room.artifact)}, with a margin.",
        reason="DiskFull",
        file=str(checkpoints.parent),
        hint="Make the workspace's volume larger, delete what is not needed from it, or lower "
        "recipe.checkpoints.keepLast in a new resource.",
    )


def _batch(config: TrainingJob) -> GlobalBatch:
    """Cut the global batch for the processes of the training, and see that what spreads them is installed."""
    preflight = config.preflight
    assert preflight is not None
    if config.deepspeed is not None and spreads(config.deepspeed, preflight.world_size):
        check_installed()
    training = Processes(world_size=preflight.world_size, device=torch.device(preflight.device))
    return global_batch(config, training, sequence_length(config))
