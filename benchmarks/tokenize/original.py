"""The data path of the original recipe, by its mechanism: `datasets` reads lines, a slow tokenizer encodes them in
worker processes, another map groups a thousand at a time into blocks, and the result is saved as Arrow files.

    python original.py TEXT TOKENIZER DIRECTORY PROCESSES
"""

import json
import shutil
import sys
import time
from itertools import chain
from pathlib import Path

import datasets
import transformers

BLOCK = 512


def main(text: str, tokenizer: str, directory: str, processes: int) -> None:
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    shutil.rmtree(directory, ignore_errors=True)
    encoder = transformers.LlamaTokenizer(vocab_file=f"{tokenizer}/tokenizer.model")

    def encode(rows):
        return encoder(rows["text"])

    def group(rows):
        joined = {name: list(chain(*lists)) for name, lists in rows.items()}
        length = len(joined["input_ids"])
        length = length // BLOCK * BLOCK if length >= BLOCK else length
        blocks = {name: [ids[at : at + BLOCK] for at in range(0, length, BLOCK)] for name, ids in joined.items()}
        return {**blocks, "labels": [list(ids) for ids in blocks["input_ids"]]}

    started = time.monotonic()
    rows = datasets.load_dataset("text", data_files=[text], cache_dir=f"{directory}/cache", keep_in_memory=False)
    tokens = rows.map(encode, batched=True, num_proc=processes, remove_columns="text", load_from_cache_file=False)
    blocks = tokens.map(group, batched=True, num_proc=processes, load_from_cache_file=False)
    blocks.save_to_disk(f"{directory}/blocks")
    seconds = time.monotonic() - started
    count = sum(len(each) for each in blocks["train"].with_format("arrow")["input_ids"])
    written = sum(path.stat().st_size for path in Path(directory, "blocks").rglob("*.arrow"))
    print(json.dumps({"seconds": seconds, "tokens": count, "written": written}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
