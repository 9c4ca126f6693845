"""The text that is measured on, and a tokenizer for it.

Paragraphs of Debian's Chinese manual pages (manpages-zh), in many random orders, so that no cache is flattered by their
order; one a line. The tokenizer is LLaMA's, extended by the Chinese pieces, where both are beside the project, or else
one that is trained here.
"""

import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "examples" / "quickstart"))
import prepare
import sentencepiece

from herdsman_trainer.tokenizer_merge import merge_tokenizer

REAL = HERE.parents[2] / "shared" / "data"
PIECES = 8000


def write_text(target: Path, mebibytes: int) -> None:
    """Write at least so much text, unless a file of that size is there."""
    if target.is_file() and target.stat().st_size >= mebibytes << 20:
        return
    pages = prepare.manual_pages(prepare.debian_package(target.parent), "")
    paragraphs = [text for document in prepare.documents_of(pages) for text in document.split("\n") if text.strip()]
    order = random.Random(7)
    with target.open("w", encoding="utf-8") as stream:
        while stream.tell() < mebibytes << 20:
            order.shuffle(paragraphs)
            stream.write("\n".join(paragraphs) + "\n")


def write_tokenizer(directory: Path, text: Path) -> str:
    """Write the tokenizer and return what it is."""
    directory.mkdir(parents=True, exist_ok=True)
    base, chinese = REAL / "tokenizer.model", REAL / "chinese_sp.model"
    if base.is_file() and chinese.is_file():
        merge_tokenizer(_directory_of(base, directory.parent / "base"), [chinese], directory)
        return "LLaMA's with the Chinese pieces, 49,953"
    with text.open(encoding="utf-8") as lines:
        sample = [line for _, line in zip(range(20_000), lines, strict=False)]
    with (directory / "tokenizer.model").open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=stream,
            vocab_size=PIECES,
            model_type="bpe",
            byte_fallback=True,
            character_coverage=0.9995,
            minloglevel=2,
        )
    return f"trained on the text, {PIECES:,} pieces"


def _directory_of(model: Path, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model.read_bytes())
    return directory
