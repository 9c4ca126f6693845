"""The step Evaluation: from directories to a report, stopped at any point and gone on with to the same report."""

import json
from html.parser import HTMLParser

import pytest

import peft_models as build
from evaluations import answered, dataset, evaluate, evaluation_config, metric_of, question_files, task
from herdsman.api.job_config import Preflight
from herdsman_trainer.artifacts import read_manifest
from herdsman_trainer.benchmarks.journal import Journal
from herdsman_trainer.errors import BadInput, Interrupted
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.steps import evaluation
from merges import merge
from tiny import CHINESE, ENGLISH, tiny_chatml_tokenizer, tiny_llama

TASKS = [
    task("text", perplexity={"dataset": dataset(), "contextTokens": 32}),
    task("spelling", tokensPerCharacter={"dataset": dataset()}),
    task("ceval", multipleChoice={"dataset": dataset(), "fewShot": 1, "maxQuestions": 40}),
    task("answers", samples={"prompts": ["你好！", "What is <b>water</b>?"], "maxTokens": 6}),
]
THRESHOLDS = [
    {"task": "text", "metric": "perplexity", "model": "other", "atMost": 1000, "judgedBy": "Interval"},
    {"task": "ceval", "metric": "accuracy", "model": "other", "over": "base", "atLeast": 0.5},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluation")
    tiny_llama(root / "base", seed=1)
    tiny_llama(root / "other", tiny_chatml_tokenizer(root / "chatml"), seed=2)
    (root / "text").mkdir()
    (root / "text/zh.txt").write_text((ENGLISH + CHINESE) * 2)
    question_files(root / "ceval", {"logic": answered("ABCD" * 10), "law": answered("BC")})
    return root


def config(root, work, attempt=1, **fields):
    datasets = {"text": root / "text", "spelling": root / "text", "ceval": root / "ceval"}
    models = {"base": root / "base", "other": root / "other"}
    given = {"thresholds": THRESHOLDS, **fields}
    return evaluation_config(root, models, TASKS, datasets, work=work, attempt=attempt, **given)


@pytest.fixture(scope="module")
def reported(root):
    return evaluate(config(root, "whole"))


def test_the_artifact_is_a_report_with_all_its_forms(root, reported):
    report, directory = reported
    assert {path.name for path in directory.iterdir()} == {
        "herdsman-artifact.json",
        "report.json",
        "report.md",
        "report.html",
        "records",
    }
    manifest = read_manifest(directory)
    assert (manifest.artifact.kind, manifest.artifact.dtype) == ("report", None)
    assert [each["name"] for each in report["tasks"]] == ["text", "spelling", "ceval", "answers"]
    assert len((directory / "records/ceval.jsonl").read_text().splitlines()) == 42
    assert not (root / "whole/evaluation.journal").exists()
    progress = json.loads((root / "whole/progress.json").read_text())
    assert (progress["percent"], progress["activity"]) == (100, "publishing")


def test_the_status_gets_what_thresholds_are_held_against_first_and_in_full(reported):
    report, directory = reported
    figures = {metric.name: metric.value for metric in read_manifest(directory).report}
    assert list(figures)[:4] == ["threshold_0", "threshold_0_low", "threshold_0_high", "threshold_1"]
    perplexity = metric_of(report, "text", "perplexity", "other")
    assert [float(figures[f"threshold_0{part}"]) for part in ("", "_low", "_high")] == [
        perplexity["value"],
        perplexity["low"],
        perplexity["high"],
    ]
    difference = metric_of(report, "ceval", "accuracy", "other")["difference"]["value"]
    assert float(figures["threshold_1"]) == difference
    assert [each["met"] for each in report["thresholds"]] == [True, False]
    assert set(list(figures)[4:]) == {
        f"{name}/{model}/{metric}"
        for name, metric in (
            ("text", "perplexityPerCharacter"),
            ("spelling", "tokensPerCharacter"),
            ("ceval", "accuracy"),
            ("answers", "stopped"),
        )
        for model in ("base", "other")
    }


def test_the_markdown_tells_the_verdict_and_the_table(reported):
    text = (reported[1] / "report.md").read_text()
    assert text.startswith("# Evaluation quality\n\n**1 of 2 thresholds are met.**\n")
    assert "| ceval: accuracy of other less that of base | ≥ 0.5 |" in text
    assert "|  | base | other |\n| --- | --- | --- |\n| text: perplexity per character (lower is better) |" in text
    assert "> The tokenizers differ, so perplexities per token are of different things" in text
    assert "What is \\<b\\>water\\</b\\>?" in text


class Page(HTMLParser):
    """What stands in a page, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.loads, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "action")]
        if tag not in ("meta", "link", "br", "line", "circle", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in ("line", "circle", "rect"):
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else_and_runs_nothing(reported):
    text = (reported[1] / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.loads == []
    assert not {"script", "img", "link", "iframe", "b"} & set(page.tags)
    assert "default-src 'none'" in text
    assert page.tags.count("svg") >= 7, "one plot a metric, and one of groups"
    assert "What is <b>water</b>?" in page.text
    assert "1 of 2 thresholds are met." in page.text


class Killed(BaseException):
    """As if the process were gone."""


@pytest.mark.parametrize("after", [1, 4, 9])
def test_an_attempt_after_a_kill_does_what_is_missing_and_writes_the_same_bytes(root, reported, monkeypatch, after):
    work, kept = f"killed-{after}", Journal.add
    calls = []

    def die(self, results):
        if len(calls) == after:
            with self._path.open("ab") as stream:  # half of a line, as a kill leaves it
                stream.write(b'{"key":"answers/other/0","val')
            raise Killed
        calls.append(list(results))
        kept(self, results)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", die)
        with pytest.raises(Killed):
            evaluate(config(root, work))
    again = []
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", lambda self, results: (again.append(list(results)), kept(self, results)))
        evaluate(config(root, work, attempt=2))
    assert len(calls) == after
    assert not set(map(tuple, calls)) & set(map(tuple, again))
    for name in ("report.json", "report.md", "report.html", "records/ceval.jsonl"):
        assert (root / work / "artifact" / name).read_bytes() == (reported[1] / name).read_bytes()


def test_other_thresholds_use_the_results_again_and_another_task_does_not(root, monkeypatch):
    made = evaluation_config(root, {"base": root / "base"}, [TASKS[0]], {"text": root / "text"}, work="once")
    context = RunContext(made)
    monkeypatch.setattr(context, "publish", lambda **_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        evaluation.run(made, context)
    lines = (root / "once/evaluation.journal").read_text()
    fingerprint = evaluation._fingerprint(made, [root / "base"])
    again = made.model_copy(update={"resamples": 300, "seed": 1, "attempt": 2})
    assert evaluation._fingerprint(again, [root / "base"]) == fingerprint
    other = again.model_copy(update={"tasks": [task("text", perplexity={"dataset": dataset(), "contextTokens": 16})]})
    assert evaluation._fingerprint(other, [root / "base"]) != fingerprint
    journal = Journal(root / "once/evaluation.journal", "another")
    assert journal.results == {}
    assert len(lines.splitlines()) > 1


def test_a_stop_is_heard_between_shards_and_counts_as_no_fault(root):
    made = config(root, "stopped")
    context = RunContext(made)
    context.request_stop()
    with pytest.raises(Interrupted):
        evaluation.run(made, context)
    assert not (root / "stopped/artifact").exists()


def test_a_base_with_an_adapter_is_evaluated_as_what_is_merged_of_them(tmp_path, root):
    adapter = build.adapter(tmp_path / "adapter", root / "base", rows=400, seed=5)
    _, merged = merge(tmp_path, root / "base", [adapter])
    models = {"base": root / "base", "with": [root / "base", adapter], "merged": merged}
    report, directory = evaluate(
        evaluation_config(tmp_path, models, [TASKS[0]], {"text": root / "text"}, work="evaluation")
    )
    of = {name: metric_of(report, "text", "perplexity", name)["value"] for name in models}
    assert of["with"] == pytest.approx(of["merged"], rel=1e-5)
    assert of["with"] != pytest.approx(of["base"], rel=1e-3)
    digest = read_manifest(merged).artifact.digest
    assert read_manifest(directory).artifact.parents == [digest]
    assert report["models"][2]["digests"] == [digest]


def test_a_preflight_checks_everything_and_leaves_nothing(root):
    made = config(root, "checked").model_copy(update={"preflight": Preflight(device="cuda", world_size=1)})
    evaluation.preflight(made, RunContext(made))
    assert not (root / "checked/artifact").exists()


THIRD = {"prompt": "llama-3-chinese-v3", "withTemplate": True}
BAD = {
    "a template the tokenizer cannot write": (
        {"tasks": [task("quiz", multipleChoice={"dataset": dataset(), **THIRD})], "datasets": "ceval"},
        "Task quiz, model base: The prompt needs the control token <|begin_of_text|>",
    ),
    "a prompt that leaves no room for an answer": (
        {"tasks": [task("quiz", samples={"prompts": ["水" * 200]})], "datasets": None},
        "and the model takes 256, prompt and answer together",
    ),
    "a judge without its key": (
        {
            "tasks": [
                task(
                    "quiz",
                    judge={
                        "questions": dataset(),
                        "endpoint": {"url": "http://judge/v1", "model": "m", "apiKey": {"name": "s", "key": "k"}},
                    },
                )
            ],
            "datasets": "text",
        },
        "the environment has no HERDSMAN_JUDGE_API_KEY",
    ),
}


@pytest.mark.parametrize("sentence", BAD)
def test_what_cannot_work_is_refused_before_any_weights_are_read(root, monkeypatch, sentence):
    fields, message = BAD[sentence]
    monkeypatch.delenv("HERDSMAN_JUDGE_API_KEY", raising=False)
    made = config(root, f"bad-{len(sentence)}", thresholds=[])
    datasets = {"quiz": made.datasets[fields["datasets"]]} if fields["datasets"] else {}
    made = made.model_copy(update={"tasks": fields["tasks"], "datasets": datasets})
    monkeypatch.setattr("herdsman_trainer.benchmarks.candidate.Candidate._load", None)
    with pytest.raises(BadInput) as caught:
        evaluation.run(made, RunContext(made))
    assert message in caught.value.message
    assert caught.value.hint
