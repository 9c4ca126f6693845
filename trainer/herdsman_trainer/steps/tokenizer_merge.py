"""TokenizerMerge: appends the pieces of SentencePiece models to a tokenizer, and reports what that saves."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from herdsman.api.job_config import TokenizerMergeConfig
from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.artifacts import open_input
from herdsman_trainer.corpora import find_text_files, read_documents
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.sentencepiece_merge import SourceCounts
from herdsman_trainer.tokenizer_merge import merge_tokenizer, tokens_per_character
from herdsman_trainer.tokenizers import TextTokenizer, load_tokenizer

SAMPLE_CHARACTERS = 5_000_000
"""How much of a sample is read at most; the figure does not change behind that."""


def run(config: TokenizerMergeConfig, context: RunContext) -> Artifact:
    """Merge, measure on the sample, publish. BadInput names the file or field that is wrong."""
    context.report(activity="merging the vocabularies", done=0.0)
    base = open_input(config.base, config.verify_inputs)
    sources = [open_input(source, config.verify_inputs) for source in config.sources]
    counts = merge_tokenizer(base, sources, context.work_dir, pad=config.pad_token)
    before, after = load_tokenizer(base), load_tokenizer(context.work_dir)
    report = vocabulary_report(before, after, counts)
    context.report(activity="measuring tokens per character", done=0.5, metrics={"pieces": after.vocab_size})
    context.raise_if_stopped()
    if config.sample is not None:
        report |= sample_report(before, after, open_input(config.sample, config.verify_inputs))
    context.report(activity="publishing", done=1.0)
    digests = {config.base.field: config.base.artifact.digest if config.base.artifact else before.digest}
    digests |= {
        source.field: hashlib.sha256(path.read_bytes()).hexdigest()
        for source, path in zip(config.sources, sources, strict=True)
    }
    return context.publish(
        kind="tokenizer",
        source_dir=context.work_dir,
        vocab_size=after.vocab_size,
        tokenizer_digest=after.digest,
        inputs=digests,
        report=report,
    )


def vocabulary_report(before: TextTokenizer, after: TextTokenizer, counts: Sequence[SourceCounts]) -> dict[str, float]:
    """Return the sizes before and after, and for each source how many pieces were added, there already, left out."""
    report: dict[str, float] = {"pieces_before": before.vocab_size, "pieces_after": after.vocab_size}
    for number, source in enumerate(counts, start=1):
        report[f"source_{number}_pieces_added"] = source.added
        report[f"source_{number}_pieces_overlap"] = source.overlap
        if source.skipped:
            report[f"source_{number}_pieces_skipped"] = sum(source.skipped.values())
    return report


def sample_report(before: TextTokenizer, after: TextTokenizer, sample: Path) -> dict[str, float]:
    """Return tokens per character (line ends not counted) with both tokenizers on the beginning of a sample."""
    texts = list(_beginning(sample))
    tokens_before, characters = tokens_per_character(before, texts)
    tokens_after, _ = tokens_per_character(after, texts)
    return {
        "sample_characters": characters,
        "tokens_per_character_before": round(tokens_before / max(characters, 1), 4),
        "tokens_per_character_after": round(tokens_after / max(characters, 1), 4),
    }


def _beginning(sample: Path) -> Iterator[str]:
    characters = 0
    for document in read_documents(find_text_files(sample), "Line"):
        yield document.text
        characters += len(document.text)
        if characters >= SAMPLE_CHARACTERS:
            return
