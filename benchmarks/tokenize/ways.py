"""Ways to tokenise a file of text, each of which tokenize.py runs as a process of its own on so many cores.

python tokenize_ways.py sentencepiece TEXT TOKENIZER DIRECTORY CORES
python tokenize_ways.py ours          TEXT TOKENIZER DIRECTORY CORES
"""

import json
import resource
import shutil
import sys
import time
from pathlib import Path

import sentencepiece

from herdsman_trainer.corpora import find_text_files
from herdsman_trainer.data.datasets import dataset_at
from herdsman_trainer.token_cache import build_or_open
from herdsman_trainer.token_streams import CorpusOptions
from herdsman_trainer.tokenizers import load_tokenizer

AT_ONCE = 10_000
"""Lines that sentencepiece gets in one call, so that its lists of numbers do not fill the memory."""


def alone(text: Path, tokenizer: Path, _: Path, cores: int) -> dict[str, float]:
    """sentencepiece's own speed: lines that are in memory become lists of ids, which are thrown away."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))
    lines = [line for line in text.read_text(encoding="utf-8").split("\n") if line]
    tokens = 0
    seconds = cpu = 0.0
    for begin in range(0, len(lines), AT_ONCE):
        some = lines[begin : begin + AT_ONCE]
        started, worked = time.monotonic(), time.process_time()
        ids = processor.encode(some, num_threads=cores)
        seconds, cpu = seconds + time.monotonic() - started, cpu + time.process_time() - worked
        tokens += sum(map(len, ids))
    return {"seconds": seconds, "cpu": cpu, "tokens": tokens + len(lines), "written": 0}


def ours(text: Path, tokenizer: Path, directory: Path, cores: int) -> dict[str, float]:
    """From a file to a cache that a training opens: digest, reading, splitting, held-out side, writing, checking."""
    shutil.rmtree(directory, ignore_errors=True)
    loaded = load_tokenizer(tokenizer)
    started, worked = time.monotonic(), _cpu()
    dataset = dataset_at(text, find_text_files)
    cache = build_or_open(directory, [dataset], loaded, CorpusOptions(held_out_fraction=0.001), workers=cores)
    seconds, cpu = time.monotonic() - started, _cpu() - worked
    written = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return {"seconds": seconds, "cpu": cpu, "tokens": len(cache.train) + len(cache.held_out), "written": written}


def _cpu() -> float:
    """CPU seconds of this process and of its workers, as far as they have ended."""
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


if __name__ == "__main__":
    way = {"sentencepiece": alone, "ours": ours}[sys.argv[1]]
    print(json.dumps(way(*map(Path, sys.argv[2:5]), int(sys.argv[5]))))
