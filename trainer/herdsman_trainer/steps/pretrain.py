"""PretrainJob: continues the pre-training of a model on text, block by block."""

from collections.abc import Sequence

import numpy as np

from herdsman.api.job_config import PretrainConfig
from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.blocks import HeldOutBlocks, PackedBlocks
from herdsman_trainer.corpora import SUFFIXES
from herdsman_trainer.data.datasets import Dataset
from herdsman_trainer.data.opening import Form, open_datasets
from herdsman_trainer.data.report import DataReport, DatasetFigures
from herdsman_trainer.distributed import Processes, connected
from herdsman_trainer.evaluation import HeldOut, tokens_of_other_vocabulary
from herdsman_trainer.mixture import Mixture, block_mixture, check_mixture
from herdsman_trainer.preflight import prepare
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.token_cache import TokenCache, build_or_open, open_tokens, token_cache_key
from herdsman_trainer.token_streams import CorpusOptions, DocumentStarts
from herdsman_trainer.tokenizers import TextTokenizer, load_tokenizer
from herdsman_trainer.training_data import passes, tell_report, tokenising, weights_of
from herdsman_trainer.training_inputs import TrainingInputs, heard_by, open_training_inputs, sequence_length
from herdsman_trainer.training_run import TrainingData, run_training


def run(config: PretrainConfig, context: RunContext) -> Artifact:
    """Tokenise the corpus, train on its blocks, and publish an adapter, or a model for stage Full.

    The report says how well the held-out text is predicted before and after, and by the unmodified model where the
    vocabulary grew. An attempt that finds the finished result returns it.
    """
    if done := context.published():
        return done
    with connected(config.device) as processes:
        context.report(activity="checking the inputs")
        inputs = processes.on_first(lambda: open_training_inputs(config, heard_by(context)))
        tokenizer = load_tokenizer(inputs.tokenizer)
        data = _data(config, context, processes, tokenizer)
        return run_training(config, context, processes, inputs, tokenizer, data)


def preflight(config: PretrainConfig, context: RunContext) -> None:
    """Check everything and tokenise the corpus, so that `run` finds it done."""

    def data_of(_: TrainingInputs, tokenizer: TextTokenizer) -> TrainingData:
        return _data(config, context, Processes(), tokenizer)

    prepare(config, context, data_of)


def _data(config: PretrainConfig, context: RunContext, processes: Processes, tokenizer: TextTokenizer) -> TrainingData:
    """Return the corpus as blocks; rank 0 makes the tokens, the others open what it made."""
    options = _options(config)

    def key_of(datasets: Sequence[Dataset]) -> str:
        return token_cache_key(datasets, tokenizer, options)

    def build() -> str:
        opened = open_datasets(config, context, Form(SUFFIXES), heard_by(context), key_of)
        cache = build_or_open(context.cache_dir, opened.datasets, tokenizer, options, tokenising(context))
        opened.finished()
        tell_report(context, _report(config, opened.datasets, cache, tokenizer))
        return cache.key

    cache = open_tokens(context.cache_dir, processes.on_first(build))
    blocks, mixture = _blocks(config, cache)
    counts, block_size = cache.held_out_counts, blocks.block_size

    def held_out_of(other: TextTokenizer) -> HeldOut:
        tokens = tokens_of_other_vocabulary(cache.held_out, tokenizer, other, cache.control_ids)
        controls = frozenset(index for index in (other.bos_id, other.eos_id) if index is not None)
        starts = _starts(config, np.flatnonzero(tokens == other.bos_id).astype(np.uint64))
        return HeldOut(HeldOutBlocks(tokens, block_size, counts.characters, controls, starts), counts.characters)

    starts = _starts(config, cache.held_out_starts)
    held_out = HeldOutBlocks(cache.held_out, block_size, counts.characters, cache.control_ids, starts)
    return TrainingData(
        train=blocks,
        held_out=HeldOut(held_out, counts.characters) if len(held_out) else None,
        key=cache.key,
        length=block_size,
        mixture=mixture,
        base_held_out=held_out_of if len(held_out) else None,
        figures={
            "documents": cache.train_counts.documents,
            "tokens": cache.train_counts.tokens,
            "tokens_per_char": cache.train_counts.tokens / max(1, cache.train_counts.characters),
            "blocks": len(blocks),
            "duplicates": sum(each.duplicates for each in cache.counts),
            "heldout_documents": counts.documents,
            "heldout_tokens": counts.tokens,
        },
    )


def _options(config: PretrainConfig) -> CorpusOptions:
    recipe = config.recipe
    return CorpusOptions(
        separator=recipe.separator,
        add_bos=recipe.add_bos if recipe.add_bos is not None else True,
        add_eos=bool(recipe.add_eos),
        held_out_fraction=recipe.held_out_fraction or 0.0,
        duplicates=recipe.duplicates,
    )


def _starts(config: PretrainConfig, starts: DocumentStarts) -> DocumentStarts | None:
    """Return where documents start if no token shall see another's; every document begins with BOS then."""
    return starts if config.recipe.attend_within == "Document" else None


def _blocks(config: PretrainConfig, cache: TokenCache) -> tuple[PackedBlocks, Mixture | None]:
    """Return the blocks of all datasets, one behind the other, and their shares where there are weights."""
    blocks = PackedBlocks(cache.train, sequence_length(config), _starts(config, cache.document_starts))
    weights = weights_of(config)
    if weights is None:
        return blocks, None
    mixture = block_mixture(cache.bounds, blocks.block_size, len(blocks), weights)
    check_mixture(mixture, [dataset.field for dataset in config.datasets], f"block of {blocks.block_size} tokens")
    return blocks, mixture


def _report(
    config: PretrainConfig, datasets: Sequence[Dataset], cache: TokenCache, tokenizer: TextTokenizer
) -> DataReport:
    blocks, mixture = _blocks(config, cache)
    options = _options(config)
    shares = block_mixture(cache.bounds, blocks.block_size, len(blocks), (1,) * len(datasets))
    figures = [
        DatasetFigures(
            read=each.train.documents + each.held_out.documents + each.empty_texts + each.dropped_duplicates,
            kept=each.train.documents + each.held_out.documents,
            held_out=each.held_out.documents,
            tokens=each.train.tokens + each.held_out.tokens,
            characters=each.train.characters + each.held_out.characters,
            duplicates=each.duplicates,
            dropped={"empty text": each.empty_texts, "duplicate": each.dropped_duplicates},
            blank_lines=each.blank_lines,
        )
        for each in cache.counts
    ]
    return DataReport(
        "documents",
        datasets,
        figures,
        shares.counts,
        tokenizer.digest,
        {
            "separator": options.separator,
            "addBos": options.add_bos,
            "addEos": options.add_eos,
            "heldOutFraction": options.held_out_fraction,
            "duplicates": options.duplicates,
            "blockSize": blocks.block_size,
            "attendWithin": config.recipe.attend_within,
        },
        passes(config.recipe, blocks, mixture, shares),
    )
