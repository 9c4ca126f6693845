"""SFTJob: tunes a model on instructions, with the answers as targets."""

import logging
from pathlib import Path

from herdsman.api.job_config import SFTConfig
from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.distributed import Processes, connected
from herdsman_trainer.evaluation import HeldOut
from herdsman_trainer.instruction_cache import build_or_open_instructions, open_instructions
from herdsman_trainer.instruction_set import InstructionSet
from herdsman_trainer.preflight import prepare
from herdsman_trainer.prompts import TEMPLATES
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.tokenizers import TextTokenizer, load_tokenizer
from herdsman_trainer.training_inputs import TrainingInputs, heard_by, open_training_inputs, sequence_length
from herdsman_trainer.training_run import TrainingData, run_training

log = logging.getLogger(__name__)


def run(config: SFTConfig, context: RunContext) -> Artifact:
    """Encode the records, tune on them, and publish an adapter that names its prompt template.

    The report counts what became of the records. An attempt that finds the finished result returns it.
    """
    if done := context.published():
        return done
    with connected(config.device) as processes:
        context.report(activity="checking the inputs")
        inputs = processes.on_first(lambda: open_training_inputs(config, heard_by(context)))
        tokenizer = load_tokenizer(inputs.tokenizer)
        samples = _samples(config, context, processes, inputs.dataset, tokenizer)
        return run_training(config, context, processes, inputs, tokenizer, _data(config, samples))


def preflight(config: SFTConfig, context: RunContext) -> None:
    """Check everything and encode the records, so that `run` finds it done."""

    def data_of(inputs: TrainingInputs, tokenizer: TextTokenizer) -> TrainingData:
        return _data(config, _samples(config, context, Processes(), inputs.dataset, tokenizer))

    prepare(config, context, data_of)


def _samples(
    config: SFTConfig, context: RunContext, processes: Processes, dataset: Path, tokenizer: TextTokenizer
) -> InstructionSet:
    """Return the records as ids; rank 0 encodes them, the others open what it made."""
    recipe = config.recipe
    template = TEMPLATES[recipe.template or "alpaca"]
    length = sequence_length(config)

    def build() -> str:
        context.report(activity="encoding the records")
        return build_or_open_instructions(
            context.cache_dir, dataset, tokenizer, template, length, recipe.overlong, recipe.system_prompt
        ).key

    samples = open_instructions(context.cache_dir, processes.on_first(build))
    if samples.counts.warning and processes.is_first:
        log.warning("%s", samples.counts.warning)
    return samples


def _data(config: SFTConfig, samples: InstructionSet) -> TrainingData:
    train, held_out = samples.split(config.recipe.held_out_fraction or 0.0)
    counts = samples.counts
    return TrainingData(
        train=train,
        held_out=HeldOut(held_out, int(held_out.characters.sum())) if len(held_out) else None,
        key=samples.key,
        length=sequence_length(config),
        figures={
            "records": counts.read,
            "samples": len(train),
            "heldout_samples": len(held_out),
            "records_truncated": counts.truncated,
            "records_dropped": counts.dropped,
        },
    )
