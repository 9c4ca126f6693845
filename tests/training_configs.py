"""Builders of tiny training runs: two layers, hidden size 32, a few hundred ids, a few lines of text."""

import json
from pathlib import Path

from herdsman.api.job_config import DatasetInput, Input, Launch, Owner, PretrainConfig, SFTConfig, WorkspaceDir
from herdsman.api.v1alpha1.recipes import (
    Batch,
    Checkpoints,
    Lora,
    PretrainRecipe,
    Schedule,
    SFTRecipe,
    resolve_pretrain,
    resolve_sft,
)
from tiny import CHINESE, ENGLISH, tiny_chinese_sentencepiece, tiny_llama

TARGETS = ["q_proj", "v_proj", "gate_proj"]
LORA = Lora(rank=2, alpha=4, dropout=0.1, targets=TARGETS, train_fully=["embed_tokens", "lm_head"])
COMMON = {
    "lora": LORA,
    "batch": Batch(global_sequences=4, micro_sequences=2),
    "learning_rate": 1e-2,
    "schedule": Schedule(kind="cosine", warmup_ratio=0.1),
    "precision": "float32",
    "checkpoints": Checkpoints(every_steps=2, keep_last=2),
    "held_out_fraction": 0.2,
    "seed": 7,
}


def base_model(root: Path, **options) -> Path:
    """Write the tiny base model."""
    return tiny_llama(root / "model", **options)


def larger_tokenizer(root: Path, base: Path | None = None, pad: bool = False) -> Path:
    """Write the tokenizer of the base model, extended by Chinese pieces."""
    from herdsman_trainer.tokenizer_merge import merge_tokenizer

    source = tiny_chinese_sentencepiece(root / "chinese") / "tokenizer.model"
    target = root / f"larger{'-pad' if pad else ''}"
    target.mkdir(exist_ok=True)
    merge_tokenizer(base or root / "model", [source], target, pad=pad)
    return target


def corpus(root: Path, text: str = ENGLISH + CHINESE) -> Path:
    """Write a corpus of two files."""
    directory = root / "corpus"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "a.txt").write_text(text)
    (directory / "b.txt").write_text(ENGLISH)
    return directory


def records(root: Path, count: int = 24) -> Path:
    """Write instruction records."""
    directory = root / "records"
    directory.mkdir(parents=True, exist_ok=True)
    lines = [line for line in ENGLISH.splitlines() if line]
    answers = [lines[index % len(lines)] for index in range(count)]
    made = [{"instruction": f"Say {index}.", "input": "", "output": answer} for index, answer in enumerate(answers)]
    (directory / "records.json").write_text(json.dumps(made))
    return directory


def an_input(path: Path, field: str) -> Input:
    return Input(root=str(path.parent), path=str(path), field=field)


def a_dataset(path: Path, field: str = "spec.dataset", **options) -> DatasetInput:
    """Return a dataset on a volume; `options` are its weight, and so on."""
    return DatasetInput(field=field, label=f"volume {path.name}", source=an_input(path, f"{field}.volume"), **options)


def pretrain_config(
    root: Path,
    *,
    stage: str = "LoRA",
    model: Path | None = None,
    adapter: Path | None = None,
    tokenizer: Path | None = None,
    dataset: Path | None = None,
    datasets: list[DatasetInput] | None = None,
    work: str = "work",
    attempt: int = 1,
    uid: str = "uid-1",
    processes: int = 1,
    port: int = 29500,
    deepspeed=None,
    **recipe,
) -> PretrainConfig:
    """Return a resolved configuration; unset inputs are the tiny model and corpus under `root`."""
    given = {"block_size": 32, "max_steps": 6} | COMMON | recipe
    return PretrainConfig(
        **_run(root, "PretrainJob", work, attempt, uid, processes, port),
        **_inputs(root, model, adapter, tokenizer),
        datasets=datasets or [a_dataset(dataset or root / "corpus")],
        deepspeed=deepspeed,
        stage=stage,
        recipe=resolve_pretrain(PretrainRecipe(**given), stage),
    )


def sft_config(
    root: Path,
    *,
    model: Path | None = None,
    adapter: Path | None = None,
    tokenizer: Path | None = None,
    dataset: Path | None = None,
    datasets: list[DatasetInput] | None = None,
    work: str = "work",
    attempt: int = 1,
    uid: str = "uid-1",
    processes: int = 1,
    port: int = 29500,
    deepspeed=None,
    **recipe,
) -> SFTConfig:
    """Return a resolved configuration; unset inputs are the tiny model and records under `root`."""
    given = {"max_length": 160, "max_steps": 4} | COMMON | recipe
    return SFTConfig(
        **_run(root, "SFTJob", work, attempt, uid, processes, port),
        **_inputs(root, model, adapter, tokenizer),
        datasets=datasets or [a_dataset(dataset or root / "records")],
        deepspeed=deepspeed,
        recipe=resolve_sft(SFTRecipe(**given)),
    )


def _run(root: Path, kind: str, work: str, attempt: int, uid: str, processes: int, port: int) -> dict:
    return {
        "owner": Owner(kind=kind, name="demo", uid=uid),
        "attempt": attempt,
        "workspace": WorkspaceDir(root=str(root), path=str(root / work), claim="claim", relative=work),
        "launch": Launch(processes_per_node=processes, master_port=port),
    }


def _inputs(root: Path, model: Path | None, adapter: Path | None, tokenizer: Path | None) -> dict:
    return {
        "model": an_input(model or root / "model", "spec.model"),
        "adapter": an_input(adapter, "spec.adapter") if adapter else None,
        "tokenizer": an_input(tokenizer, "spec.tokenizer") if tokenizer else None,
    }
