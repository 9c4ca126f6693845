"""Evaluations through `herdsman run`, with the real trainer: gates open, and one stays closed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from builders import manifest
from evaluations import answered, question_files
from tiny import CHINESE, tiny_llama

MODELS = [
    {"name": name, "model": {"volume": {"claim": "models", "path": name}}, "template": "alpaca"}
    for name in ("before", "after")
]
TASKS = [
    {"name": "text", "perplexity": {"dataset": {"volume": {"claim": "models", "path": "text"}}, "maxDocuments": 3}},
    {"name": "ceval", "multipleChoice": {"dataset": {"volume": {"claim": "models", "path": "ceval"}}, "fewShot": 0}},
    {"name": "hello", "samples": {"prompts": ["你好！"], "maxTokens": 4}},
]


def threshold(limit: float) -> dict:
    return {"task": "text", "metric": "perplexity", "model": "after", "atMost": limit}


def herdsman(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from herdsman.cli import main; main()", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "200", "HERDSMAN_HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The home, what the command said, and the statuses by name."""
    root = tmp_path_factory.mktemp("run")
    volume = root / "models"
    for seed, name in enumerate(("before", "after")):
        tiny_llama(volume / name, seed=seed)
    (volume / "text").mkdir()
    (volume / "text/zh.txt").write_text(CHINESE)
    question_files(volume / "ceval", {"logic": answered("ABCD")})
    server = {"model": {"volume": {"claim": "models", "path": "after"}}, "after": [{"evaluation": "strict"}]}
    wanted = {"models": MODELS, "tasks": TASKS}
    manifests = [
        manifest("ModelServer", "chat", {**server, "port": 18765}),
        manifest("Evaluation", "strict", {**wanted, "thresholds": [threshold(2)], "after": [{"evaluation": "good"}]}),
        manifest("Evaluation", "good", {**wanted, "thresholds": [threshold(1000)]}),
    ]
    (root / "all.yaml").write_text(yaml.safe_dump_all(manifests))
    said = herdsman(root / "home", "run", root / "all.yaml", "--volume", f"models={volume}")
    there = json.loads(herdsman(root / "home", "get", "-o", "json").stdout)
    statuses = {item["metadata"]["name"]: item["status"] for item in there["items"]}
    return root / "home", said, statuses


def test_the_run_ends_and_says_what_came_out_and_who_waits(ran):
    _, said, _ = ran
    assert said.returncode == 1, said.stdout + said.stderr
    assert "✘ Evaluation/strict: 1 of 1 thresholds not met. text: perplexity of after is" in said.stdout
    assert "and at most 2 is asked (spec.thresholds[0])" in said.stdout


def test_what_met_its_thresholds_is_complete_and_lets_others_begin(ran):
    _, said, statuses = ran
    good, strict = statuses["good"], statuses["strict"]
    assert good["phase"] == "Succeeded", said.stdout
    assert good["artifact"]["kind"] == "report"
    figures = {metric["name"]: float(metric["value"]) for metric in good["report"]}
    assert 200 < figures["threshold_0"] < 1000
    assert {"text/after/perplexityPerCharacter", "ceval/before/accuracy", "hello/after/stopped"} < figures.keys()
    assert (strict["phase"], strict["failure"]["reason"]) == ("Failed", "ThresholdNotMet")
    assert len(strict["attempts"]) == 1, "it began, and is not tried again"


def test_the_report_is_there_in_both_cases(ran):
    home, _, statuses = ran
    for name in ("good", "strict"):
        artifact = statuses[name]["artifact"]
        page = home / "volumes" / artifact["claim"] / artifact["path"] / "report.html"
        assert "<svg" in page.read_text(encoding="utf-8")


def test_the_server_waits_and_says_for_what(ran):
    chat = ran[2]["chat"]
    assert (chat["phase"], chat["replicas"]) == ("Waiting", 0)
    (waits,) = (each for each in chat["conditions"] if each["type"] == "DependenciesReady")
    assert waits["reason"] == "ReferenceFailed"
    assert "Evaluation strict came out below its thresholds" in waits["message"]
