"""A model of which every probability is known: perplexity and accuracy as one computes them by hand."""

import math

import pytest

from evaluations import answered, bigram_model, dataset, evaluate, evaluation_config, metric_of, question_files, task

BOS = "<|begin_of_text|>"
COLON = "："
"""Its last byte, which is what the toy knows of it, is that of no other character here."""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Answers B behind a colon; says a with 1/4 at the start, then b with 1/2 behind a, and a with 1/8 behind b."""
    letters = {"A": 0.2, "B": 0.4, "C": 0.1, "D": 0.3}
    chances = {BOS: {"a": 0.25}, "a": {"b": 0.5}, "b": {"a": 0.125}, COLON: letters, ":": letters, " ": letters}
    return bigram_model(tmp_path_factory.mktemp("toy"), chances)


def run(root, toy, tasks, datasets, **fields):
    return evaluate(evaluation_config(root, {"toy": toy}, tasks, datasets, **fields))[0]


def test_perplexity_is_the_one_computed_by_hand(tmp_path, toy):
    # "abab" has the probability 1/4 · 1/2 · 1/8 · 1/2, "a" 1/4: two to the power of 7 and of 2, over 5 tokens.
    (tmp_path / "text.txt").write_text("abab\na\n")
    report = run(tmp_path, toy, [task("text", perplexity={"dataset": dataset()})], {"text": tmp_path / "text.txt"})
    assert metric_of(report, "text", "perplexity", "toy")["value"] == pytest.approx(2 ** (9 / 5), rel=1e-5)
    assert metric_of(report, "text", "perplexityPerCharacter", "toy")["value"] == pytest.approx(2 ** (9 / 5), rel=1e-5)
    assert metric_of(report, "text", "bitsPerByte", "toy")["value"] == pytest.approx(9 / 5, rel=1e-5)
    assert report["tasks"][0]["details"]["tokens"] == {"toy": 5}


def test_a_character_of_three_bytes_counts_once_for_characters_and_thrice_for_bytes(tmp_path, toy):
    # Nothing is known behind these bytes, so each of the three is one of all ids; the first stands behind BOS.
    (tmp_path / "text.txt").write_text("中")
    report = run(
        tmp_path,
        toy,
        [task("text", perplexity={"dataset": dataset()}), task("spelling", tokensPerCharacter={"dataset": dataset()})],
        {"text": tmp_path / "text.txt", "spelling": tmp_path / "text.txt"},
    )
    ids = report["models"][0]["vocabulary"]
    bits = -math.log2(0.75 / (ids - 1)) + 2 * math.log2(ids)
    assert metric_of(report, "text", "perplexity", "toy")["value"] == pytest.approx(2 ** (bits / 3), rel=1e-5)
    assert metric_of(report, "text", "perplexityPerCharacter", "toy")["value"] == pytest.approx(2**bits, rel=1e-5)
    assert metric_of(report, "text", "bitsPerByte", "toy")["value"] == pytest.approx(bits / 3, rel=1e-5)
    assert metric_of(report, "spelling", "tokensPerCharacter", "toy")["value"] == 3.0


def test_a_short_context_changes_nothing_for_a_model_that_looks_back_one_token(tmp_path, toy):
    (tmp_path / "text.txt").write_text("ab" * 40)
    values = [
        metric_of(
            run(
                tmp_path,
                toy,
                [task("text", perplexity={"dataset": dataset(), "contextTokens": context})],
                {"text": tmp_path / "text.txt"},
                work=f"work-{context}",
            ),
            "text",
            "perplexity",
            "toy",
        )["value"]
        for context in (8, 13, 512)
    ]
    by_hand = 2 ** ((2 + 40 * 1 + 39 * 3) / 80)
    assert values == pytest.approx([by_hand] * 3, rel=1e-5)


@pytest.mark.parametrize(
    ("form", "split", "asked"),
    [
        ("CEval", "val", {"fewShot": 0}),
        ("CEval", "val", {"fewShot": 5}),
        ("CEval", "val", {"fewShot": 2, "prompt": "llama-3-chinese-v3"}),
        ("CMMLU", "test", {"fewShot": 1, "prompt": "chinese-llama-v2", "scoring": "FirstToken"}),
        ("MMLU", "test", {"fewShot": 3}),
        ("MMLU", "test", {"fewShot": 0, "scoring": "LogLikelihood"}),
    ],
    ids=str,
)
def test_accuracy_is_the_share_of_the_letter_it_prefers(tmp_path, toy, form, split, asked):
    rows = {"logic": answered("ABBBD"), "law": answered("BAC")}  # it always says B: 3 of 5 and 1 of 3
    files = question_files(tmp_path / "files", rows, form=form, split=split)
    report = run(
        tmp_path, toy, [task("quiz", multipleChoice={"dataset": dataset(), "format": form, **asked})], {"quiz": files}
    )
    assert metric_of(report, "quiz", "accuracy", "toy")["value"] == 4 / 8
    over = metric_of(report, "quiz", "accuracyOverSubjects", "toy")
    assert over["value"] == pytest.approx((3 / 5 + 1 / 3) / 2)
    shares = {row["name"]: row["accuracy"]["toy"] for row in report["tasks"][0]["details"]["subjects"]}
    assert shares == {"law": pytest.approx(1 / 3), "logic": 3 / 5}


def test_a_model_that_never_stops_is_cut_off_and_told_and_one_that_stops_is_not(tmp_path, toy):
    endless = bigram_model(tmp_path / "endless", {"\n": {"x": 0.9}, "x": {"x": 0.9}})
    brief = bigram_model(tmp_path / "brief", {"\n": {"x": 0.9}, "x": {"<|end_of_text|>": 0.9}})
    config = evaluation_config(
        tmp_path,
        {"endless": endless, "brief": brief},
        [task("answers", samples={"prompts": ["x?", "y?"], "maxTokens": 12, "repetitionPenaltyPercent": 100})],
        {},
    )
    report, _ = evaluate(config)
    assert [metric_of(report, "answers", "stopped", name)["value"] for name in ("endless", "brief")] == [0.0, 1.0]
    (told,) = report["tasks"][0]["notes"]
    assert told.startswith("endless ended no answer by itself: each was cut off at 12 tokens.")
    answers = report["tasks"][0]["details"]["samples"][0]["answers"]
    assert (answers["endless"]["tokens"], answers["brief"]) == (12, {"text": "x", "tokens": 1, "stopped": True})
