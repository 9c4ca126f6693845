"""The published chain end to end: the real tokenizers and real records, a small Llama, the OpenAI client."""

import json
import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest

pytestmark = [pytest.mark.real_data, pytest.mark.timeout(600)]

PIPELINE = Path(__file__).parent / "chain" / "pipeline.yaml"
LLAMA_DIGEST = "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347"
MERGED_DIGEST = "e2676d4ca29ca1750f6ff203328d73b189321dc5776ceede037cbd36541d70c0"
PADDED_DIGEST = "2d967e855b1213a439df6c8ce2791f869c84b4f3b6cfacf22b86440b8192a2f8"


def herdsman(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "herdsman", *arguments]
    environment = os.environ | {"COLUMNS": "160", "HERDSMAN_HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, timeout=560, env=environment)


@pytest.fixture(scope="module")
def records(real_data):
    """The four shortest records of the real instruction file."""
    everything = json.loads((real_data / "ruozhiba_qa2449_gpt4o.json").read_text(encoding="utf-8"))
    return sorted(everything, key=lambda record: len(record["instruction"]) + len(record["output"]))[:4]


@pytest.fixture(scope="module")
def home(real_data, records, tmp_path_factory):
    """A home in which the whole pipeline has run."""
    home = tmp_path_factory.mktemp("home")
    instructions = tmp_path_factory.mktemp("instructions")
    (instructions / "records.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    volumes = ["--volume", f"real={real_data}", "--volume", f"instructions={instructions}"]
    try:
        ran = herdsman(home, "run", PIPELINE, *volumes)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        yield home
    finally:
        herdsman(home, "stop")


def status(home: Path, kind: str, name: str) -> dict:
    shown = herdsman(home, "get", kind, name, "-o", "json")
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)["status"]


@pytest.mark.parametrize(
    ("name", "pieces", "digest"),
    [("zh-tokenizer", 49_953, MERGED_DIGEST), ("zh-tokenizer-pad", 49_954, PADDED_DIGEST)],
)
def test_the_merged_tokenizers_are_the_published_files(home, name, pieces, digest):
    artifact = status(home, "tm", name)["artifact"]
    assert (artifact["vocabSize"], artifact["tokenizerDigest"]) == (pieces, digest)


@pytest.mark.parametrize(
    ("kind", "name", "rows", "tokenizer"),
    [
        ("mi", "llama-small", 32_000, LLAMA_DIGEST),
        ("pj", "zh-embeddings", 49_953, MERGED_DIGEST),
        ("pj", "zh-pretrain", 49_953, MERGED_DIGEST),
        ("lm", "zh-llama", 49_953, MERGED_DIGEST),
        ("sj", "zh-sft", 49_954, PADDED_DIGEST),
        ("lm", "zh-alpaca", 49_954, PADDED_DIGEST),
    ],
)
def test_rows_and_tokenizer_travel_together_through_the_chain(home, kind, name, rows, tokenizer):
    artifact = status(home, kind, name)["artifact"]
    assert (artifact["vocabSize"], artifact["tokenizerDigest"]) == (rows, tokenizer)


def test_the_openai_client_gets_the_answer_the_model_was_tuned_on(home, records):
    url = status(home, "ms", "zh-alpaca")["url"]
    client = openai.OpenAI(base_url=url, api_key="none", timeout=60)
    for record in records[:3]:
        reply = client.chat.completions.create(
            model="zh-alpaca",
            messages=[{"role": "user", "content": record["instruction"]}],
            temperature=0,
            max_tokens=120,
            extra_body={"repetition_penalty": 1.0},
        )
        assert reply.choices[0].message.content == record["output"]
        assert reply.choices[0].finish_reason == "stop"


def test_a_second_run_changes_nothing(home, real_data):
    def stamps() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in (home / "volumes").rglob("*") if path.is_file()}

    before = stamps()
    assert before
    again = herdsman(home, "run", PIPELINE)
    assert again.returncode == 0, again.stdout + again.stderr
    assert stamps() == before
