"""Evaluations: what a run is configured with, whether its figures meet the thresholds, and how that ends."""

import json

import pytest

from builders import (
    CLUSTER,
    artifact,
    checked,
    digest,
    evaluation,
    finished,
    pretrain_job,
    sft_job,
    with_status,
    world,
)
from core.verdicts import BASE, MERGED, MET, MISSED, QUALITY, condition, report, reported
from herdsman.api.exit_codes import TerminationMessage
from herdsman.api.job_config import RUN_CONFIG
from herdsman.api.v1alpha1.evaluation import MAX_THRESHOLDS
from herdsman.api.v1alpha1.status import Metric, Phase, Reason
from herdsman.core.plan import plan
from herdsman.core.status import is_final, is_refused, status
from herdsman.core.thresholds import failure


def config(of, *others):
    planned = plan(of, world(BASE, MERGED, *others), CLUSTER)
    (text,) = (child["data"]["job.json"] for child in planned.children if child["kind"] == "ConfigMap")
    return RUN_CONFIG.validate_json(text)


def test_a_run_gets_all_models_with_their_adapters_and_the_files_of_its_tasks():
    trained = finished(pretrain_job("zh"))
    tuned = finished(sft_job("tuned"), parents=[trained.status.artifact.digest])
    of = checked(
        evaluation(
            models=[
                {"name": "before", "model": {"modelImport": "base"}},
                {
                    "name": "after",
                    "model": {"modelImport": "base"},
                    "adapters": [{"pretrainJob": "zh"}, {"sftJob": "tuned"}],
                    "template": "alpaca",
                },
            ],
            tasks=[
                {"name": "text", "perplexity": {"dataset": {"volume": {"claim": "corpora", "path": "zh"}}}},
                {"name": "hello", "samples": {"prompts": ["Hello"]}},
                {"name": "quiz", "multipleChoice": {"dataset": {"volume": {"claim": "instructions"}}}},
            ],
            thresholds=[{"task": "quiz", "metric": "accuracy", "model": "after", "atLeast": 0.5}],
            compute={"gpusPerNode": 1},
        )
    )
    read = config(of, trained, tuned)
    assert [each.name for each in read.models] == ["before", "after"]
    assert [each.field for each in read.models[1].adapters] == [
        "spec.models[1].adapters[0].pretrainJob",
        "spec.models[1].adapters[1].sftJob",
    ]
    assert (read.models[1].template, read.models[0].adapters) == ("alpaca", [])
    assert {name: dataset.source.path for name, dataset in read.datasets.items()} == {
        "text": "/volumes/corpora/zh",
        "quiz": "/volumes/instructions",
    }
    assert read.datasets["text"].source.field == "spec.tasks[0].perplexity.dataset.volume"
    assert (read.device, len(read.tasks), read.thresholds[0].at_least) == ("cuda", 3, 0.5)


def test_text_and_questions_from_elsewhere_are_downloaded_by_the_run():
    token = {"name": "keys", "key": "token"}
    hub = {"repository": "ceval/ceval-exam", "revision": "0" * 40, "token": token}
    of = evaluation(
        tasks=[
            {"name": "quiz", "multipleChoice": {"dataset": {"hub": hub, "sha256": {"ceval-exam.zip": "1" * 64}}}},
            {"name": "text", "perplexity": {"dataset": {"volume": {"claim": "corpora"}}}},
        ],
        thresholds=[],
    )
    read = config(of)
    assert read.datasets["quiz"].source is None
    assert read.datasets["quiz"].remote.hub.repository == "ceval/ceval-exam"
    assert read.datasets["quiz"].field == "spec.tasks[0].multipleChoice.dataset"
    assert read.datasets["quiz"].sha256 == {"ceval-exam.zip": "1" * 64}
    assert read.datasets["text"].remote is None
    planned = plan(of, world(BASE, MERGED), CLUSTER)
    (template,) = (child["spec"]["template"] for child in planned.children if child["kind"] == "Job")
    assert template["metadata"]["labels"]["herdsman.dev/downloads"] == "true"
    env = {entry["name"]: entry for entry in template["spec"]["containers"][0]["env"]}
    assert env["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": token}
    assert "HF_HUB_OFFLINE" not in env


def test_two_tasks_with_different_credentials_are_refused():
    def of_hub(name):
        return {"hub": {"repository": "a/b", "revision": "0" * 40, "token": {"name": name, "key": "token"}}}

    of = evaluation(
        tasks=[
            {"name": "quiz", "multipleChoice": {"dataset": of_hub("one")}},
            {"name": "text", "perplexity": {"dataset": of_hub("other")}},
        ],
        thresholds=[],
    )
    refused = reported(of, BASE, MERGED)
    assert is_refused(refused.status)
    assert refused.status.failure.message.startswith("spec.tasks[1].perplexity.dataset: it names another Secret")


def test_on_gpus_a_preflight_on_a_cpu_comes_first():
    gpus = evaluation(compute={"gpusPerNode": 1})
    read = config(gpus)
    assert (read.device, read.preflight.device, read.verify_inputs) == ("cpu", "cuda", "Digests")
    pod = next(c for c in plan(gpus, world(BASE, MERGED), CLUSTER).children if c["kind"] == "Job")
    assert "limits" not in pod["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert config(QUALITY).preflight is None


def test_a_judge_gets_its_key_from_a_secret_and_a_way_out_of_the_cluster():
    endpoint = {"url": "https://api.example.com/v1", "model": "j", "apiKey": {"name": "judge", "key": "key"}}
    of = evaluation(
        tasks=[{"name": "judged", "judge": {"questions": {"volume": {"claim": "corpora"}}, "endpoint": endpoint}}],
        thresholds=[],
    )
    planned = plan(of, world(BASE, MERGED), CLUSTER)
    (template,) = (child["spec"]["template"] for child in planned.children if child["kind"] == "Job")
    env = {entry["name"]: entry for entry in template["spec"]["containers"][0]["env"]}
    assert env["HERDSMAN_JUDGE_API_KEY"]["valueFrom"] == {"secretKeyRef": {"name": "judge", "key": "key"}}
    assert template["metadata"]["labels"]["herdsman.dev/downloads"] == "true"
    assert "herdsman.dev/downloads" not in json.dumps(plan(QUALITY, world(BASE, MERGED), CLUSTER).children)


def test_adapters_that_do_not_fit_are_refused_before_anything_runs():
    elsewhere = finished(sft_job("tuned"), base_digest=digest("another model"))
    of = evaluation(
        models=[{"name": "after", "model": {"modelImport": "base"}, "adapters": [{"sftJob": "tuned"}]}],
    )
    refused = plan(of, world(BASE, elsewhere), CLUSTER).refused
    assert refused.reason is Reason.ARTIFACT_MISMATCH
    assert refused.message.startswith("spec.models[0].adapters[0].sftJob: SFTJob tuned was trained on")


def thresholds_of(**fields):
    return evaluation(thresholds=[{"task": "text", "metric": "perplexity", "model": "after", **fields}])


GATES = {
    "below a limit above": (thresholds_of(atMost=12), {"threshold_0": 11.9}, None),
    "at the limit": (thresholds_of(atMost=12), {"threshold_0": 12.0}, None),
    "above a limit above": (
        thresholds_of(atMost=12),
        {"threshold_0": 12.5},
        "text: perplexity of after is 12.5, and at most 12 is asked (spec.thresholds[0]).",
    ),
    "below a limit below": (
        thresholds_of(atLeast=3),
        {"threshold_0": 2},
        "text: perplexity of after is 2, and at least 3 is asked (spec.thresholds[0]).",
    ),
    "outside of a range": (thresholds_of(atLeast=3, atMost=4), {"threshold_0": 5}, "is 5, and at most 4 is asked"),
    "inside of a range": (thresholds_of(atLeast=3, atMost=4), {"threshold_0": 3.5}, None),
    "a difference": (
        thresholds_of(over="before", atMost=-1),
        {"threshold_0": -0.5},
        "text: perplexity of after less that of before is -0.5, and at most -1 is asked",
    ),
    "all of an interval": (
        thresholds_of(atMost=12, judgedBy="Interval"),
        {"threshold_0": 11, "threshold_0_low": 10, "threshold_0_high": 11.9},
        None,
    ),
    "an interval that reaches over the limit": (
        thresholds_of(atMost=12, judgedBy="Interval"),
        {"threshold_0": 11, "threshold_0_low": 10, "threshold_0_high": 12.4},
        "is 11 (95 % interval 10 to 12.4), and at most 12 is asked for all of the interval",
    ),
    "an interval nobody told": (thresholds_of(atMost=12, judgedBy="Interval"), {"threshold_0": 11}, "10 to inf"[3:]),
    "infinite": (thresholds_of(atMost=12), {"threshold_0": "inf"}, "is inf, and at most 12 is asked"),
    "no number": (thresholds_of(atLeast=1), {"threshold_0": "nan"}, "is nan, and at least 1 is asked"),
    "not told": (thresholds_of(atMost=12), {}, "was not told by the run (spec.thresholds[0])"),
    "not readable": (thresholds_of(atMost=12), {"threshold_0": "twelve"}, "was not told by the run"),
}


@pytest.mark.parametrize("sentence", GATES)
def test_figures_meet_thresholds_or_are_told_with_their_numbers(sentence):
    of, figures, message = GATES[sentence]
    missed = failure(of, report(**figures))
    if message is None:
        assert missed is None
    else:
        assert missed.reason == "ThresholdNotMet"
        assert message in missed.message
        assert "new Evaluation" in missed.hint


def test_of_several_thresholds_all_that_are_missed_are_told():
    asked = [
        {"task": "text", "metric": "perplexity", "model": name, "atMost": limit}
        for name, limit in (("before", 20), ("after", 12), ("after", 11))
    ]
    missed = failure(evaluation(thresholds=asked), report(threshold_0=19, threshold_1=12.5, threshold_2=12.5))
    assert missed.message.startswith("2 of 3 thresholds not met. ")
    assert missed.message.count("is asked") == 2


def test_no_other_kind_has_thresholds():
    assert failure(sft_job(), ()) is None


def test_an_evaluation_that_meets_its_thresholds_is_complete():
    assert MET.status.phase is Phase.SUCCEEDED
    assert condition(MET, "Complete").status == "True"
    assert MET.status.artifact.kind == "report"


def test_one_that_does_not_has_failed_for_good_with_its_report_in_its_place():
    assert MISSED.status.phase is Phase.FAILED
    assert is_final(MISSED.status)
    complete, has_failed = condition(MISSED, "Complete"), condition(MISSED, "Failed")
    assert (complete.status, complete.reason) == ("False", "ThresholdNotMet")
    assert (has_failed.status, has_failed.reason) == ("True", "ThresholdNotMet")
    assert has_failed.message.startswith("1 of 1 thresholds not met. text: perplexity of after is 12.5, and at most 12")
    assert MISSED.status.failure.reason == "ThresholdNotMet"
    assert MISSED.status.artifact.path == "evaluations/quality/artifact"
    assert (MISSED.status.progress.percent, MISSED.status.restarts) == (100, 0)
    assert MISSED.status.attempts[0].reason == "Succeeded"
    assert [metric.value for metric in MISSED.status.report] == ["12.5"]


def test_a_verdict_stays_when_the_job_is_gone_and_makes_no_other_attempt():
    for of in (MET, MISSED):
        seen = world(BASE, MERGED)
        planned = plan(of, seen, CLUSTER)
        assert planned.children == ()
        assert status(of, planned, seen).phase is of.status.phase


def test_a_verdict_that_was_not_written_is_found_again_from_what_was_recorded():
    status_before = MISSED.status.model_copy(update={"conditions": [], "phase": Phase.RUNNING, "failure": None})
    again = reported(with_status(QUALITY, status_before), BASE, MERGED)
    assert again.status.phase is Phase.FAILED
    assert condition(again, "Failed").reason == "ThresholdNotMet"


def test_the_last_words_hold_all_that_thresholds_are_held_against():
    figures = [
        Metric(name=f"threshold_{place}{part}", value=repr(-12345.678901234567 / (place + 3)))
        for place in range(MAX_THRESHOLDS)
        for part in ("", "_low", "_high")
    ]
    more = [Metric(name=f"task-of-20-letters-{n:02}/model/perplexityPerCharacter", value="1.23456") for n in range(40)]
    place = {"claim": "c" * 253, "path": "p" * 120}
    made = artifact(QUALITY, parents=[digest(str(n)) for n in range(16)], **place)
    said = TerminationMessage(reason="Succeeded", artifact=made, report=[*figures, *more])
    heard = TerminationMessage.model_validate_json(said.to_bytes())
    assert heard.artifact == made
    assert heard.report[: len(figures)] == figures
    assert len(figures) <= 40, "the status keeps so many"
