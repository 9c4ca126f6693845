"""PretrainJob: continues the pre-training of a model on text, block by block."""

from pathlib import Path

from herdsman.api.job_config import PretrainConfig
from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.blocks import HeldOutBlocks, PackedBlocks
from herdsman_trainer.distributed import Processes, connected
from herdsman_trainer.evaluation import HeldOut, tokens_of_other_vocabulary
from herdsman_trainer.preflight import prepare
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.token_cache import TokenCache, build_or_open, open_tokens
from herdsman_trainer.token_writer import CorpusOptions
from herdsman_trainer.tokenizers import TextTokenizer, load_tokenizer
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
        cache = _tokens(config, context, processes, inputs.dataset, tokenizer)
        return run_training(config, context, processes, inputs, tokenizer, _data(config, cache, tokenizer))


def preflight(config: PretrainConfig, context: RunContext) -> None:
    """Check everything and tokenise the corpus, so that `run` finds it done."""

    def data_of(inputs: TrainingInputs, tokenizer: TextTokenizer) -> TrainingData:
        return _data(config, _tokens(config, context, Processes(), inputs.dataset, tokenizer), tokenizer)

    prepare(config, context, data_of)


def _tokens(
    config: PretrainConfig, context: RunContext, processes: Processes, dataset: Path, tokenizer: TextTokenizer
) -> TokenCache:
    """Return the corpus as tokens; rank 0 makes them, the others open what it made."""
    recipe = config.recipe
    options = CorpusOptions(
        separator=recipe.separator,
        add_bos=recipe.add_bos if recipe.add_bos is not None else True,
        add_eos=bool(recipe.add_eos),
        held_out_fraction=recipe.held_out_fraction or 0.0,
    )

    def progress(done: int, total: int) -> None:
        context.raise_if_stopped()
        context.report(activity=f"tokenising, {100 * done // max(1, total)} %")

    def build() -> str:
        return build_or_open(context.cache_dir, dataset, tokenizer, options, progress).key

    return open_tokens(context.cache_dir, processes.on_first(build))


def _data(config: PretrainConfig, cache: TokenCache, tokenizer: TextTokenizer) -> TrainingData:
    block_size = sequence_length(config)
    blocks = PackedBlocks(cache.train, block_size)
    counts = cache.held_out_counts

    def held_out_of(other: TextTokenizer) -> HeldOut:
        tokens = tokens_of_other_vocabulary(cache.held_out, tokenizer, other, cache.control_ids)
        controls = frozenset(index for index in (other.bos_id, other.eos_id) if index is not None)
        return HeldOut(HeldOutBlocks(tokens, block_size, counts.characters, controls), counts.characters)

    held_out = HeldOutBlocks(cache.held_out, block_size, counts.characters, cache.control_ids)
    return TrainingData(
        train=blocks,
        held_out=HeldOut(held_out, counts.characters) if len(held_out) else None,
        key=cache.key,
        length=block_size,
        base_held_out=held_out_of if len(held_out) else None,
        figures={
            "documents": cache.train_counts.documents,
            "tokens": cache.train_counts.tokens,
            "tokens_per_char": cache.train_counts.tokens / max(1, cache.train_counts.characters),
            "blocks": len(blocks),
            "heldout_documents": counts.documents,
            "heldout_tokens": counts.tokens,
        },
    )
