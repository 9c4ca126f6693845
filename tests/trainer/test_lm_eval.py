"""lm-evaluation-harness on the same model and the same files, as an oracle: losses, scores and answers are the same.

What it gave once is written down here, so that the comparison holds without it; `make lm-eval` asks it anew.
"""

import json

import pytest
import yaml

from evaluations import dataset, evaluate, evaluation_config, metric_of, question_files, task
from tiny import CHINESE, ENGLISH, tiny_bpe_tokenizer, tiny_llama

FORMATS = {"MMLU": "test", "CEval": "val"}
LETTERS = "ABCD"
HARNESS = {
    "bits_per_byte": 7.896582912339292,
    "byte_perplexity": 238.2913731340375,
    "MMLU": 0.25,
    "CEval": 0.3,
}
"""What lm_eval 0.4.13 measured, with transformers 5.24 and torch 2.13."""


def _rows(text, answers):
    lines = [line for line in text.splitlines() if line]
    return [
        (line, line[:4], line[4:9], line[-9:-4], line[-4:], answer) for line, answer in zip(lines, answers, strict=True)
    ]


ROWS = {"logic": _rows(CHINESE, "ABCDACBDAC"), "marketing": _rows(ENGLISH, "CCABDADBAB")}
DOCUMENTS = [ENGLISH.strip(), CHINESE.strip(), "学习一种语言需要时间。", "A short one."]
CONTEXT = 48


def strong_model(directory):
    """A tiny Llama that has opinions, and room for examples."""
    from transformers import LlamaForCausalLM

    tiny_llama(directory, tiny_bpe_tokenizer(directory), seed=11)
    model = LlamaForCausalLM.from_pretrained(directory)
    model.config.max_position_embeddings = 2048
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data *= 16
    model.save_pretrained(directory)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("lm-eval")
    strong_model(root / "model")
    for form, split in FORMATS.items():
        question_files(root / form, ROWS, form=form, split=split)
    (root / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return root


@pytest.fixture(scope="module")
def evaluated(root):
    tasks = [
        task("text", perplexity={"dataset": dataset(), "contextTokens": CONTEXT}),
        *(
            task(
                form.lower(),
                multipleChoice={"dataset": dataset(), "format": form, "fewShot": 2, "scoring": "LogLikelihood"},
            )
            for form in FORMATS
        ),
    ]
    datasets = {"text": root / "text.jsonl", **{form.lower(): root / form for form in FORMATS}}
    return evaluate(evaluation_config(root, {"model": root / "model"}, tasks, datasets))


@pytest.fixture(scope="module")
def ours(evaluated):
    report, _ = evaluated
    bits = metric_of(report, "text", "bitsPerByte", "model")["value"]
    accuracies = {form: metric_of(report, form.lower(), "accuracy", "model")["value"] for form in FORMATS}
    return {"bits_per_byte": bits, "byte_perplexity": 2**bits, **accuracies}


@pytest.mark.parametrize("figure", HARNESS)
def test_the_figures_are_those_of_the_harness(ours, figure):
    assert ours[figure] == pytest.approx(HARNESS[figure], rel=1e-4)


def harness_tasks(root):
    """The harness' own tasks over the same files: prompts are written out, because its templates differ by blanks."""
    from herdsman.api.v1alpha1.evaluation_tasks import MultipleChoice
    from herdsman_trainer.benchmarks.question_prompts import question_prompt
    from herdsman_trainer.benchmarks.questions import read_subjects

    directory = root / "tasks"
    directory.mkdir()
    for form in FORMATS:
        asked = MultipleChoice.model_validate({"dataset": dataset(), "format": form, "few_shot": 2})
        records = [
            {
                "prompt": question_prompt(asked, subject, question, 2)[0],
                "label": LETTERS.index(question.answer),
            }
            for subject in read_subjects(root / form, asked, root / "scratch")
            for question in subject.questions
        ]
        (directory / f"{form}.json").write_text(json.dumps(records))
        _write(directory, form, "multiple_choice", form, "prompt", doc_to_choice=list(LETTERS), doc_to_target="label")
    (directory / "text.json").write_text(json.dumps([{"text": text} for text in DOCUMENTS]))
    _write(directory, "text", "loglikelihood_rolling", "text", "", doc_to_target="{{text}}")
    return directory


def _write(directory, name, output, data, prompt, **fields):
    document = {
        "task": f"herdsman_{name.lower()}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(directory / f"{data}.json")}},
        "test_split": "test",
        "output_type": output,
        "doc_to_text": f"{{{{{prompt}}}}}" if prompt else "",
        "num_fewshot": 0,
        "metric_list": [{"metric": name} for name in (["acc"] if prompt else ["bits_per_byte", "byte_perplexity"])],
        **fields,
    }
    (directory / f"{name}.yaml").write_text(yaml.safe_dump(document))


def test_the_harness_still_gives_these_figures(root, evaluated, monkeypatch, tmp_path):
    _, directory = evaluated
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: make lm-eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(harness_tasks(root)), include_defaults=False)

    def measured(name, length, bos):
        # With a BOS the harness would have the text's own BOS predicted too, from another one before it.
        model = HFLM(
            pretrained=str(root / "model"),
            device="cpu",
            dtype="float32",
            batch_size=4,
            max_length=length,
            add_bos_token=bos,
        )
        return simple_evaluate(model=model, tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=True)

    text = measured("herdsman_text", CONTEXT, bos=False)["results"]["herdsman_text"]
    found = {name: text[f"{name},none"] for name in ("bits_per_byte", "byte_perplexity")}
    for form in FORMATS:
        name = f"herdsman_{form.lower()}"
        results = measured(name, 2048, bos=True)
        found[form] = results["results"][name]["acc,none"]
        records = [json.loads(line) for line in (directory / f"records/{form.lower()}.jsonl").read_text().splitlines()]
        for record, sample in zip(records, results["samples"][name], strict=True):
            theirs = [score for score, _ in sample["filtered_resps"]]
            assert record["scores"]["model"] == pytest.approx(theirs, rel=1e-4)
    assert found == pytest.approx(HARNESS, rel=1e-4)
