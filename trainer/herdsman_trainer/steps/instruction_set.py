"""InstructionSet: cleans and converts given records, asks a model for new ones, and publishes what stays."""

import logging
from collections.abc import Callable

from herdsman.api.job_config import InstructionSetConfig
from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.artifacts import open_input
from herdsman_trainer.data.opening import dataset_here
from herdsman_trainer.errors import BadInput
from herdsman_trainer.instruction_making.asking import Clock
from herdsman_trainer.instruction_making.endpoint import Endpoint
from herdsman_trainer.instruction_making.generation import forget_replies, generate
from herdsman_trainer.instruction_making.given import seed_tasks, source_digest, take_given
from herdsman_trainer.instruction_making.keeping import Keeper, counted
from herdsman_trainer.instruction_making.record_files import SUFFIXES
from herdsman_trainer.instruction_making.set_files import GENERATED, write_set
from herdsman_trainer.run_context import RunContext

_SCRATCH = "records.tmp"
log = logging.getLogger(__name__)


def run(
    config: InstructionSetConfig,
    context: RunContext,
    *,
    endpoint: Callable[[], Endpoint] | None = None,
    clock: Clock | None = None,
) -> Artifact:
    """Take the given records, ask for new ones, choose, and publish; BadInput names what is wrong with file and line.

    Given files are read anew by every attempt; replies of a model are kept as they come and never asked for twice.
    """
    context.report(activity="checking the inputs")
    found = [dataset_here(place, source.dataset, context, SUFFIXES) for place, source in enumerate(config.sources)]
    paths = [path for path, _ in found]
    downloads = [downloaded for _, downloaded in found if downloaded is not None]
    asked = config.generate
    examples_path = open_input(asked.seed_tasks, config.verify_inputs) if asked and asked.seed_tasks else None
    examples = seed_tasks(config, examples_path)
    scratch = context.workspace / _SCRATCH
    with Keeper(scratch, config.clean, config.language, generates=asked is not None) as keeper:
        keeper.show(task.instruction for task in examples)
        take_given(config, paths, keeper, context)
        made = None
        if asked is not None:
            made = generate(config, keeper, examples, context, endpoint=endpoint, clock=clock)
        if not len(keeper):
            hint = (
                "Look at the records, at spec.language and at spec.clean; a form that is not seen is named in `format`."
            )
            raise BadInput(f"No record is left of {keeper.read:,}: {counted(keeper.dropped)}.", hint=hint)
        log.info("%d of %d records stay (%s)", len(keeper), keeper.read, counted(keeper.dropped))
        context.report(activity="writing the records")
        report = write_set(context.work_dir, config, keeper, made, context.raise_if_stopped)
    scratch.unlink()
    figures = report.figures()
    shown = ("records", "records_dropped", "requests", "request_tokens", "cost")
    context.report(activity="publishing", done=1.0, metrics={name: figures[name] for name in shown if name in figures})
    inputs = {
        source.dataset.field: source_digest(source, path)
        for source, (path, _) in zip(config.sources, found, strict=True)
    }
    for downloaded in downloads:
        inputs |= downloaded.inputs
    if made is not None:
        inputs[GENERATED] = made.key
    artifact = context.publish(kind="dataset", source_dir=context.work_dir, inputs=inputs, report=figures)
    if made is not None and made.ended_by is not None:
        context.closing_words = (
            f"It has {made.kept:,} of the {made.wanted:,} generated records, because {made.ended_by}."
        )
    if made is not None and asked is not None and not asked.spec.keep_replies:
        forget_replies(config, made.key)
    for downloaded in downloads:
        downloaded.release()
    return artifact
