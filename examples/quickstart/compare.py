"""Prints what the quickstart changed: tokens and loss per character, and answers before and after."""

import argparse
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

HERDSMAN = str(Path(sys.executable).parent / "herdsman")
MODELS = ("before", "after")
QUESTIONS = ["你好！", "SQL 命令 DROP VIEW 是做什么的？", "怎样删除一个表？"]


def resource(kind: str, name: str) -> dict:
    """Return a resource of this home as JSON."""
    shown = subprocess.run([HERDSMAN, "get", kind, name, "-o", "json"], capture_output=True, text=True, check=False)
    if shown.returncode != 0:
        sys.exit(shown.stderr.strip() or f"{kind} {name} is not there: run `make quickstart` first")
    return json.loads(shown.stdout)


def figures(kind: str, name: str) -> dict[str, str]:
    """Return the report of a finished resource, by name."""
    return {metric["name"]: metric["value"] for metric in resource(kind, name)["status"].get("report", [])}


def answer(server: str, question: str) -> str:
    """Ask a ModelServer, greedily."""
    status = resource("modelserver", server)["status"]
    if status["phase"] != "Ready":
        sys.exit(f"ModelServer {server} is {status['phase']}, not Ready: `herdsman run examples/quickstart` starts it")
    body = {
        "model": server,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 60,
    }
    request = urllib.request.Request(
        f"{status['url']}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.load(reply)["choices"][0]["message"]["content"].strip()


def line(title: str, before: str, after: str) -> None:
    """Print one figure before and after."""
    print(f"  {title:44} {before:>8} -> {after:>8}")


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("questions", nargs="*", default=QUESTIONS, help="what to ask both models")
    asked = parser.parse_args()

    tokenizer = figures("tokenizermerge", "zh-tokenizer")
    print("\nTokens per Chinese character")
    line("tokenizer", tokenizer["tokens_per_character_before"], tokenizer["tokens_per_character_after"])

    print("Loss per character on held-out text (nats; the unmodified model, then after each stage)")
    stages = {name: figures("pretrainjob", name) for name in ("zh-embeddings", "zh-pretrain")}
    base = stages["zh-embeddings"]["heldout_loss_per_char_base"]
    line("unmodified model -> new rows, untrained", base, stages["zh-embeddings"]["heldout_loss_per_char_before"])
    for name, report in stages.items():
        line(name, report["heldout_loss_per_char_before"], report["heldout_loss_per_char_after"])
    tuned = figures("sftjob", "zh-sft")
    print("Loss per character on held-out answers")
    line("zh-sft", tuned["heldout_loss_per_char_before"], tuned["heldout_loss_per_char_after"])

    quality = resource("evaluation", "zh-quality")["status"]
    figures_of = {metric["name"]: metric["value"] for metric in quality["report"]}
    print("Evaluation zh-quality, which the server waited for: unmodified -> tuned model")
    line("share of answers that end by themselves", *(figures_of[f"answers/{name}/stopped"] for name in MODELS))
    line(
        "perplexity per character of running text",
        *(figures_of[f"text/{name}/perplexityPerCharacter"] for name in MODELS),
    )
    print("  (short answers of one kind cost some of what the text has taught: examples/smollm2-zh is gentler)")
    home = Path(os.environ.get("HERDSMAN_HOME", ".herdsman"))
    place = quality["artifact"]
    print(f"  its report: {home / 'volumes' / place['claim'] / place['path'] / 'report.html'}")

    for question in asked.questions:
        print(f"\n  {question}")
        print(f"    before: {answer('smollm2', question)}")
        print(f"    after:  {answer('smollm2-zh', question)}")


if __name__ == "__main__":
    main()
