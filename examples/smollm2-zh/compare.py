"""Prints what the example changed: loss on Chinese and English text that no training saw, answers before and after.

The losses are the merged model's, computed by transformers; the answers come from llama.cpp, out of four bits a weight.
"""

import argparse
import json
import math
import subprocess
import sys
import urllib.request
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from herdsman_trainer.tokenizers import load_tokenizer

HERDSMAN = str(Path(sys.executable).parent / "herdsman")
VOLUMES = Path(".herdsman/volumes")
HELD_OUT = VOLUMES / "smollm2-zh" / "heldout"
WINDOW = 256
"""Tokens that are seen at once."""
QUESTIONS = ["你好！", "SQL 命令 DROP VIEW 是做什么的？", "SQL 命令 CREATE INDEX 是做什么的？"]
ENGLISH_QUESTIONS = ["What is the capital of France?"]


def resource(kind: str, name: str) -> dict:
    """Return a resource of this home as JSON."""
    shown = subprocess.run([HERDSMAN, "get", kind, name, "-o", "json"], capture_output=True, text=True, check=False)
    if shown.returncode != 0:
        sys.exit(shown.stderr.strip() or f"{kind} {name} is not there: run `herdsman run examples/smollm2-zh` first")
    return json.loads(shown.stdout)


def directory_of(kind: str, name: str) -> Path:
    """Return where the artifact of a finished resource lies."""
    artifact = resource(kind, name)["status"].get("artifact")
    if artifact is None:
        sys.exit(f"{kind} {name} is not finished: run `herdsman run examples/smollm2-zh` first")
    return VOLUMES / artifact["claim"] / artifact["path"]


def loss_per_character(directory: Path, text: str) -> float:
    """Return the summed loss over the characters, in nats; each window starts anew and its first token is given."""
    tokenizer = load_tokenizer(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids, nll, given = tokenizer.encode(text), 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, WINDOW):
            window = torch.tensor([ids[start : start + WINDOW]])
            if window.shape[1] < 2:
                continue
            nll += float(model(window, labels=window).loss) * (window.shape[1] - 1)
            given += len(tokenizer.decode([ids[start]]))
    return nll / (len(text) - given)


def answer(server: str, question: str) -> str:
    """Ask a ModelServer, greedily."""
    status = resource("modelserver", server)["status"]
    if status["phase"] != "Ready":
        sys.exit(f"ModelServer {server} is {status['phase']}, not Ready: `herdsman run examples/smollm2-zh` starts it")
    body = {"model": server, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 60}
    request = urllib.request.Request(
        f"{status['url']}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.load(reply)["choices"][0]["message"]["content"].strip()


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "questions", nargs="*", default=[*QUESTIONS, *ENGLISH_QUESTIONS], help="what to ask both models"
    )
    asked = parser.parse_args()
    logging.disable_progress_bar()
    before, after = directory_of("modelimport", "smollm2-gguf"), directory_of("loramerge", "smollm2-zh-merged")
    print("\nHeld-out text, loss per character in nats (perplexity per character)")
    for language, name in (("Chinese", "zh.txt"), ("English", "en.txt")):
        text = (HELD_OUT / name).read_text(encoding="utf-8")
        losses = [loss_per_character(directory, text) for directory in (before, after)]
        shown = [f"{loss:.3f} ({math.exp(loss):.1f})" for loss in losses]
        print(f"  {language:10} {shown[0]:>16} -> {shown[1]:>16}")
    for question in asked.questions:
        print(f"\n  {question}")
        print(f"    before: {answer('smollm2-before', question)}")
        print(f"    after:  {answer('smollm2-after', question)}")


if __name__ == "__main__":
    main()
