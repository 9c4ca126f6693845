"""What both kinds of training say about their data, and the shares of several datasets."""

import time
from collections.abc import Sequence

from herdsman.api.job_config import PretrainConfig, SFTConfig
from herdsman.api.v1alpha1.recipes import TrainingRecipe
from herdsman_trainer.data.assembly import Progress
from herdsman_trainer.data.report import DataReport, write_report
from herdsman_trainer.mixture import Mixture
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.step_budget import TrainingSequences, planned_steps

MEBIBYTE = 1 << 20


def weights_of(config: PretrainConfig | SFTConfig) -> tuple[int, ...] | None:
    """Return the weight of each dataset; None where they have none."""
    weights = [dataset.weight for dataset in config.datasets]
    given = tuple(weight for weight in weights if weight is not None)
    return given if len(given) == len(weights) else None


def tokenising(context: RunContext) -> Progress:
    """Return what says how far the tokenising is, and stops it when asked to."""
    begun: tuple[float, int] | None = None

    def progress(done: int, total: int) -> None:
        nonlocal begun
        context.raise_if_stopped()
        begun = begun or (time.monotonic(), done)
        seconds, size = time.monotonic() - begun[0], done - begun[1]
        speed = f", {size / seconds / MEBIBYTE:.0f} MiB/s" if seconds > 1 else ""
        context.report(activity=f"tokenising, {100 * done // max(1, total)} %{speed}")

    return progress


def tell_report(context: RunContext, report: DataReport) -> None:
    """Write the data report into the workspace, and its figures into the status."""
    write_report(report, context.workspace)
    context.report(data=report.headline())
    context.flush()


def passes(
    recipe: TrainingRecipe, sequences: TrainingSequences, mixture: Mixture | None, shares: Mixture
) -> Sequence[float]:
    """Return how often the run goes through each dataset; `shares` says which sequences are whose."""
    global_sequences = recipe.batch.global_sequences or 1
    total = planned_steps(recipe, sequences, global_sequences, mixture) * global_sequences
    if mixture is not None:
        return mixture.passes(total)
    return [total / len(sequences)] * len(shares.counts)
