"""Builders of evaluations: configurations, files of questions, and a model of which every probability is known."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from herdsman.api.job_config import DatasetInput, EvaluationConfig, Input, ModelToEvaluate, Owner
from herdsman.api.v1alpha1.evaluation import Threshold
from herdsman.api.v1alpha1.evaluation_tasks import Task
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.steps import evaluation
from run_configs import source, workspace
from tiny import tiny_bpe_tokenizer


def task(name: str, **kind: Any) -> Task:
    """A task as in a manifest; a dataset may be left out, for it is given as a path."""
    return Task.model_validate_json(json.dumps({"name": name, **kind}))


def dataset() -> dict[str, Any]:
    return {"volume": {"claim": "data"}}


def evaluation_config(
    root: Path,
    models: Mapping[str, Path | Sequence[Path]],
    tasks: Sequence[Task],
    datasets: Mapping[str, Path | DatasetInput],
    *,
    thresholds: Sequence[Mapping[str, Any]] = (),
    attempt: int = 1,
    work: str = "work",
    **fields: Any,
) -> EvaluationConfig:
    """A configuration over directories: each model is a base, or a base and adapters."""
    given = []
    for place, (name, paths) in enumerate(models.items()):
        base, *adapters = [paths] if isinstance(paths, Path) else paths
        named = [_input(path, f"spec.models[{place}].adapters[{number}]") for number, path in enumerate(adapters)]
        model = _input(base, f"spec.models[{place}].model")
        given.append(ModelToEvaluate(name=name, model=model, adapters=named, template=fields.pop("template", None)))
    return EvaluationConfig(
        owner=Owner(kind="Evaluation", name="quality", uid="uid-1"),
        attempt=attempt,
        workspace=workspace(root, work),
        models=given,
        tasks=list(tasks),
        datasets={
            name: path
            if isinstance(path, DatasetInput)
            else DatasetInput(field=f"spec.tasks.{name}", label=name, source=_input(path, f"spec.tasks.{name}"))
            for name, path in datasets.items()
        },
        thresholds=[Threshold.model_validate_json(json.dumps(each)) for each in thresholds],
        **{"resamples": 200, **fields},
    )


def evaluate(config: EvaluationConfig) -> tuple[dict[str, Any], Path]:
    """Run an evaluation; returns its report and the directory of the artifact."""
    context = RunContext(config)
    try:
        evaluation.run(config, context)
    finally:
        context.close()
    directory = Path(config.workspace.path) / "artifact"
    return json.loads((directory / "report.json").read_text(encoding="utf-8")), directory


def metric_of(report: Mapping[str, Any], task: str, metric: str, model: str) -> dict[str, Any]:
    """One figure of a report with its interval and difference."""
    (found,) = (each for each in report["tasks"] if each["name"] == task)
    (metrics,) = (each for each in found["metrics"] if each["metric"] == metric)
    return next(each for each in metrics["models"] if each["model"] == model)


def _input(path: Path, field: str) -> Input:
    return source(path, field=field, root=path if path.is_dir() else path.parent)


Row = Sequence[str]
HEADERS = {
    "CEval": ["id", "question", "A", "B", "C", "D", "answer", "explanation"],
    "CMMLU": ["", "Question", "A", "B", "C", "D", "Answer"],
}


def question_files(
    root: Path, rows: Mapping[str, Sequence[Row]], examples: int = 5, form: str = "CEval", split: str = "val"
) -> Path:
    """Files of a benchmark: for each subject rows of (question, A, B, C, D, answer), and some examples in dev."""
    ending = {"CEval": "_{}", "CMMLU": "", "MMLU": "_{}"}[form]
    for folder, of in ((split, rows), ("dev", {name: example_rows(examples) for name in rows})):
        directory = root / folder
        directory.mkdir(parents=True, exist_ok=True)
        for name, lines in of.items():
            path = directory / f"{name}{ending.format(folder)}.csv"
            with path.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream)
                if form != "MMLU":
                    writer.writerow(HEADERS[form])
                for number, row in enumerate(lines):
                    more = {"CEval": [""], "CMMLU": [], "MMLU": []}[form]
                    writer.writerow([*([] if form == "MMLU" else [str(number)]), *row, *more])
    return root


def example_rows(count: int) -> list[Row]:
    return [(f"{n} 加 1 等于多少？", str(n), str(n + 1), str(n + 2), str(n + 3), "B") for n in range(count)]


def answered(answers: str, question: str = "河水从哪里流出来？") -> list[Row]:
    """As many questions as letters, with these as their answers."""
    return [(f"{question}（{n}）", "山里", "大海", "天空", "学校", answer) for n, answer in enumerate(answers)]


def bigram_model(directory: Path, chances: Mapping[str, Mapping[str, float]]) -> Path:
    """A Llama that knows the last byte only: `chances[last][next]` are probabilities, what is left over is spread
    evenly over all other ids. A last byte that is not given has all ids equally likely. BOS and other control tokens
    are named by their strings.

    Its layers add nothing, its embedding is a unit matrix, and the norm makes of that the square root of the width; so
    the head's columns are logarithms of probabilities.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from herdsman_trainer.tokenizers import load_tokenizer

    tiny_bpe_tokenizer(directory, vocab_size=262, text="")
    tokenizer = load_tokenizer(directory)
    rows = tokenizer.vocab_size
    width = rows + rows % 2
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=width,
        max_position_embeddings=2048,
        rms_norm_eps=1e-12,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )
    model = LlamaForCausalLM(config)

    def index(token: str) -> int:
        control = tokenizer.control_id(token)
        return control if control is not None else tokenizer.encode(token)[-1]

    logs = torch.full((rows, rows), math.log(1 / rows), dtype=torch.float64)
    for last, following in chances.items():
        rest = 1 - sum(following.values())
        share = rest / (rows - len(following))
        row = torch.full((rows,), math.log(share) if share > 1e-9 else -60.0, dtype=torch.float64)
        for token, chance in following.items():
            row[index(token)] = math.log(chance)
        logs[index(last)] = row
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.layers[0].input_layernorm.weight.fill_(1.0)
        model.model.layers[0].post_attention_layernorm.weight.fill_(1.0)
        model.model.embed_tokens.weight[:, :rows] = torch.eye(rows)
        model.lm_head.weight[:, :rows] = (logs.T / math.sqrt(width)).float()
    model.save_pretrained(directory)
    return directory
