"""Makes what benchmarks/merge.py measures with: a random LLaMA of the 7B shape and two adapters, with tokenizers.

    python benchmarks/merge_inputs.py DIRECTORY --layers 16

The adapters are the recipe's: rank 8 on seven projections with embeddings and head of 49,953 rows, and one of 49,954
on top. Everything is float16, as the published ones are. What is already there is kept.
"""

import argparse
import io
import json
import shutil
from pathlib import Path

import sentencepiece
import torch

from herdsman.api.v1alpha1.model_import import Initialise
from herdsman_trainer.sentencepiece_proto import append_pieces, read_pieces
from herdsman_trainer.weights.adapter_writing import write_adapter
from herdsman_trainer.weights.adapters import LoraSettings
from herdsman_trainer.weights.architecture import expected_tensors
from herdsman_trainer.weights.initialisation import write_initial_model

ROWS = {"base": 32000, "pretrained": 49953, "tuned": 49954}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WHOLE = ("model.embed_tokens.weight", "lm_head.weight")
RANK = 8
TEXT = "a river rises in the hills and reaches the sea after three hundred miles; farmers grow wheat along its banks"


def tokenizer(directory: Path, rows: int) -> None:
    """Write a SentencePiece model of so many pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split()),
        model_writer=model,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    pieces = len(read_pieces(model.getvalue()))
    directory.mkdir(parents=True, exist_ok=True)
    content = append_pieces(model.getvalue(), (f"piece{number}" for number in range(rows - pieces)))
    (directory / "tokenizer.model").write_bytes(content)


def adapter(directory: Path, base: Path, rows: int, seed: int) -> None:
    """Write an adapter for the base whose embeddings have so many rows."""
    config = json.loads((base / "config.json").read_text())
    shapes = expected_tensors({**config, "vocab_size": rows}, str(base))
    generator = torch.Generator().manual_seed(seed)
    targets = [name for name in shapes if name.endswith(tuple(f"{each}.weight" for each in PROJECTIONS))]
    tensors = {f"base_model.model.{name}": normal(shapes[name], generator) for name in WHOLE}
    for name in targets:
        out, into = shapes[name]
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{stem}.lora_A.weight"] = normal((RANK, into), generator)
        tensors[f"{stem}.lora_B.weight"] = normal((out, RANK), generator)
    tokenizer(directory, rows)
    settings = LoraSettings(rank=RANK, alpha=32)
    write_adapter(directory, tensors, settings=settings, lora_targets=targets, full=WHOLE)


def normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return (torch.randn(shape, generator=generator) * 0.02).to(torch.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--width", type=int, default=4096, help="4096 is the 7B's; narrower ones are for trying it out")
    arguments = parser.parse_args()
    root, said = arguments.directory, f"{arguments.layers} layers of width {arguments.width}"
    done = root / "inputs.txt"
    if done.is_file() and done.read_text() == said:
        return
    for name in ROWS:
        shutil.rmtree(root / name, ignore_errors=True)
    tokenizer(root / "base-tokenizer", ROWS["base"])
    wanted = Initialise.model_validate(
        {
            "tokenizer": {"volume": {"claim": "unused", "path": "unused"}},
            "hiddenSize": arguments.width,
            "intermediateSize": arguments.width * 43 // 16,
            "layers": arguments.layers,
            "attentionHeads": arguments.width // 128,
        }
    )
    (root / "base").mkdir(parents=True)
    write_initial_model(wanted, root / "base-tokenizer", root / "base", torch.float16, lambda *_: None)
    for seed, name in enumerate(("pretrained", "tuned"), 1):
        adapter(root / name, root / "base", ROWS[name], seed)
    done.write_text(said)


if __name__ == "__main__":
    main()
