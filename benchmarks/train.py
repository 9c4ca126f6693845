"""Training beside the recipe as published and beside the best stock tuning, on one GPU with random weights.

    python benchmarks/train.py --record benchmarks/train.md

Every case is a process of its own with weights drawn on the device. Tokens a second count real tokens, none of padding,
over whole optimizer steps of the same mathematics: the same global batch, LoRA with dropout on seven projections,
embedding and head trained, AdamW, clipping. MFU counts the model's operations alone (4 a frozen, 6 a trained parameter
and token, and attention) over 989 TFLOP/s. `published`: micro-batch 1, fp16 with loss scaling, gradient checkpointing,
transformers with peft. `stock`: bf16, the whole batch at once, no checkpointing, fused AdamW; `compiled`: the same with
every layer compiled. `ours`: what a PretrainJob or SFTJob does. Loss and gradients of ours and of stock are compared
with float32's on the same batch without dropout.

The goals stand beside the figures; the exit code is 1 where one is missed. Needs a GPU of 141 GB for all cases;
`--only` and `--shape tiny --device cpu` try the program itself.
"""

import argparse
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from train_report import goals, table

HERE = Path(__file__).resolve().parent

PRETRAIN = {"shape": "7b", "length": 512, "sequences": 8, "rank": 8}
LLAMA3 = {"shape": "8b", "length": 1024, "sequences": 8, "rank": 64}
SFT = {"shape": "7b", "length": 512, "sequences": 64, "rank": 8, "lengths": "alpaca"}
CASES: dict[str, dict[str, Any]] = {
    "7B, blocks of 512: published": {**PRETRAIN, "way": "published", "steps": 5},
    "7B, blocks of 512: stock": {**PRETRAIN, "way": "stock", "steps": 6},
    "7B, blocks of 512: compiled": {**PRETRAIN, "way": "compiled", "steps": 12},
    "7B, blocks of 512: ours": {**PRETRAIN, "way": "ours", "steps": 30},
    "7B, blocks of 512: ours, recomputed": {**PRETRAIN, "way": "ours", "steps": 15, "recompute": "Full"},
    "7B, blocks of 512: ours, four bits": {
        **PRETRAIN, "way": "ours", "steps": 15, "recompute": "Full", "format": "NF4", "micro_tokens": 2048,
    },
    "7B, blocks of 512: ours, fp8": {**PRETRAIN, "way": "ours", "steps": 25, "format": "FP8"},
    "7B, blocks of 512: accuracy": {**PRETRAIN, "way": "accuracy"},
    "8B, blocks of 1024: published": {**LLAMA3, "way": "published", "steps": 3, "half": "bf16", "checkpointing": False},
    "8B, blocks of 1024: ours": {**LLAMA3, "way": "ours", "steps": 20},
    "7B, instructions: published": {**SFT, "way": "published", "steps": 1, "warm": 1},
    "7B, instructions: stock, packed": {**SFT, "way": "stock", "steps": 8, "packed": True},
    "7B, instructions: ours": {**SFT, "way": "ours", "steps": 15},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="cases whose names contain this")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", help="instead of each case's own: tiny")
    parser.add_argument("--record", type=Path, help="where to write the table and the JSON line")
    parser.add_argument("--seconds", type=int, default=240, help="that one case may take")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        if given.only and not any(part in name for part in given.only):
            continue
        settings = {**case, "device": given.device, **({"shape": given.shape} if given.shape else {})}
        try:
            process = subprocess.run(
                [sys.executable, HERE / "train_cases.py", json.dumps(settings)],
                capture_output=True, text=True, timeout=given.seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            found[name] = {"failed": f"longer than {given.seconds} s"}
        else:
            lines = process.stdout.strip().splitlines()
            found[name] = (
                json.loads(lines[-1]) if process.returncode == 0 else {"failed": process.stderr.strip()[-1500:]}
            )
        print(name, json.dumps(found[name]), flush=True)
    print("\n" + table(found), flush=True)
    reached = goals(found)
    for name, (figure, bound, met) in reached.items():
        print(f"{'met   ' if met else 'MISSED'} {name}: {figure:.3g}, goal {bound:g}")
    if given.record:
        record(given.record, found, reached)
    sys.exit(not all(met for _, _, met in reached.values()))


def record(path: Path, found: dict[str, Any], reached: dict[str, Any]) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    rows = [
        f"| {name} | {figure:.3g}{'' if met else ' (missed)'} | {bound:g} |"
        for name, (figure, bound, met) in reached.items()
    ]
    path.write_text(
        "# Training\n\nWritten by `make bench-train`; what is measured, and how, says [train.py](train.py).\n\n"
        f"{datetime.now(UTC):%Y-%m-%d}, {device}, PyTorch {torch.__version__}.\n\n{table(found)}\n\n"
        "| goal | reached | bound |\n| --- | ---: | ---: |\n" + "\n".join(rows) + "\n\n"
        f"```json\n{json.dumps(found)}\n```\n"
    )


if __name__ == "__main__":
    main()
