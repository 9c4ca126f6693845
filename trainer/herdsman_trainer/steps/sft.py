"""SFTJob: tunes a model on instructions, with the answers as targets."""

import logging
from collections.abc import Sequence

import numpy as np

from herdsman.api.job_config import SFTConfig
from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.data.datasets import Dataset
from herdsman_trainer.data.opening import Form, open_datasets
from herdsman_trainer.data.report import DataReport, DatasetFigures
from herdsman_trainer.distributed import Processes, connected
from herdsman_trainer.evaluation import HeldOut
from herdsman_trainer.instruction_cache import build_or_open_instructions, instruction_cache_key, open_instructions
from herdsman_trainer.instruction_files import SUFFIXES
from herdsman_trainer.instruction_set import InstructionSet
from herdsman_trainer.instructions import InstructionOptions
from herdsman_trainer.mixture import Mixture, check_mixture
from herdsman_trainer.preflight import prepare
from herdsman_trainer.prompts import TEMPLATES
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.tokenizers import TextTokenizer, load_tokenizer
from herdsman_trainer.training_data import passes, tell_report, tokenising, weights_of
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
        data = _data(config, context, processes, tokenizer)
        return run_training(config, context, processes, inputs, tokenizer, data)


def preflight(config: SFTConfig, context: RunContext) -> None:
    """Check everything and encode the records, so that `run` finds it done."""

    def data_of(_: TrainingInputs, tokenizer: TextTokenizer) -> TrainingData:
        return _data(config, context, Processes(), tokenizer)

    prepare(config, context, data_of)


def _data(config: SFTConfig, context: RunContext, processes: Processes, tokenizer: TextTokenizer) -> TrainingData:
    """Return the records as samples; rank 0 encodes them, the others open what it made."""
    options = _options(config)

    def key_of(datasets: Sequence[Dataset]) -> str:
        return instruction_cache_key(datasets, tokenizer, options)

    def build() -> str:
        opened = open_datasets(config, context, Form(SUFFIXES), heard_by(context), key_of)
        samples = build_or_open_instructions(
            context.cache_dir, opened.datasets, tokenizer, options, tokenising(context)
        )
        opened.finished()
        tell_report(context, _report(config, opened.datasets, samples, tokenizer))
        return samples.key

    samples = open_instructions(context.cache_dir, processes.on_first(build))
    if samples.counts.warning and processes.is_first:
        log.warning("%s", samples.counts.warning)
    train, held_out = samples.split(config.recipe.held_out_fraction or 0.0)
    counts = samples.counts
    return TrainingData(
        train=train,
        held_out=HeldOut(held_out, int(held_out.characters.sum())) if len(held_out) else None,
        key=samples.key,
        length=sequence_length(config),
        mixture=_mixture(config, train),
        figures={
            "records": counts.read,
            "samples": len(train),
            "heldout_samples": len(held_out),
            "records_truncated": counts.truncated,
            "records_dropped": counts.dropped,
            "duplicates": counts.duplicates,
        },
    )


def _options(config: SFTConfig) -> InstructionOptions:
    recipe = config.recipe
    return InstructionOptions(
        template=TEMPLATES[recipe.template or "alpaca"],
        max_length=sequence_length(config),
        overlong=recipe.overlong,
        system=recipe.system_prompt,
        duplicates=recipe.duplicates,
    )


def _mixture(config: SFTConfig, train: InstructionSet) -> Mixture | None:
    weights = weights_of(config)
    if weights is None:
        return None
    mixture = Mixture(train.bounds, weights)
    check_mixture(mixture, [dataset.field for dataset in config.datasets], "sample")
    return mixture


def _report(
    config: SFTConfig, datasets: Sequence[Dataset], samples: InstructionSet, tokenizer: TextTokenizer
) -> DataReport:
    recipe, options = config.recipe, _options(config)
    train, held_out = samples.split(recipe.held_out_fraction or 0.0)
    figures = [
        DatasetFigures(
            read=each.read,
            kept=each.kept,
            held_out=kept_back,
            tokens=each.tokens,
            characters=each.text_characters,
            truncated=each.truncated,
            duplicates=each.duplicates,
            dropped=each.reasons,
        )
        for each, kept_back in zip(samples.counts_of, np.diff(held_out.bounds).tolist(), strict=True)
    ]
    shares = Mixture(train.bounds, (1,) * len(datasets))
    return DataReport(
        "records",
        datasets,
        figures,
        shares.counts,
        tokenizer.digest,
        {
            "template": options.template.name,
            "maxLength": options.max_length,
            "overlong": options.overlong,
            "heldOutFraction": recipe.held_out_fraction or 0.0,
            "duplicates": options.duplicates,
        },
        passes(recipe, train, _mixture(config, train), shares),
    )
