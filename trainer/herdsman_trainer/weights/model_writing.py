"""Writes what a model directory has besides weights: config, generation config, tokenizer, chat template."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from herdsman.api.job_config import FileDigest
from herdsman_trainer.chat_templates import chat_template
from herdsman_trainer.prompts import TEMPLATES
from herdsman_trainer.tokenizer_files import CHAT_TEMPLATE_FILE
from herdsman_trainer.tokenizers import TextTokenizer, copy_tokenizer
from herdsman_trainer.weights.architecture import check_tensors
from herdsman_trainer.weights.chain import CONFIG_FILE, GENERATION_FILE, Chain
from herdsman_trainer.weights.reading import read_json_object
from herdsman_trainer.weights.tensor_spec import TensorSpec
from herdsman_trainer.weights.vocabulary import merged_config
from herdsman_trainer.weights.writing import write_file

Figures = Mapping[str, float | str]
"""Named figures for an artifact's report."""

Announce = Callable[[str, float], None]
"""Hears what is done next, such as "writing lm_head.weight", and the share of the writing that is done, 0 to 1; it may
raise to stop the work."""


@dataclass(frozen=True)
class WrittenModel:
    """A model directory that was just written."""

    vocab_size: int
    tokenizer: TextTokenizer
    dtype: torch.dtype
    figures: Figures
    digests: Mapping[str, FileDigest] = field(default_factory=dict)
    """Of files whose digest was taken while they were written."""


def result_config(chain: Chain) -> dict[str, Any]:
    """Return config.json of a merged chain; raises BadInput where its tensors would not load strictly with it."""
    plan = chain.merge.plan
    config = merged_config(chain.model.config, plan, chain.tokenizer.pad_id)
    check_tensors(plan.specs, config, str(chain.model.path))
    return config


def write_description(chain: Chain, target: Path) -> None:
    """Write what a model directory has besides weights: config.json, generation config, tokenizer, chat template."""
    write_json(target / CONFIG_FILE, result_config(chain))
    write_json(target / GENERATION_FILE, _generation_config(chain))
    copy_tokenizer(chain.tokenizer_directory, target)
    if chain.prompt_template and chain.tuned_here:
        (target / CHAT_TEMPLATE_FILE).write_text(chat_template(chain.prompt_template), encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object as Hugging Face libraries lay it out."""
    write_file(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def _generation_config(chain: Chain) -> dict[str, Any]:
    """The base's, with the ids of the tokenizer and the end of a turn, so that plain `generate` stops there too."""
    path = chain.model.path / GENERATION_FILE
    config = read_json_object(path) if path.is_file() else {}
    return {**config, **token_ids(chain.tokenizer, chain.prompt_template, config.get("eos_token_id"))}


def token_ids(tokenizer: TextTokenizer, template: str | None = None, known_eos: Any = None) -> dict[str, Any]:
    """Return bos_token_id, eos_token_id and pad_token_id for config.json or generation_config.json.

    `known_eos`, one id or a list, stays in force; ids of a base keep their meaning when a vocabulary grows.
    """
    stops = {tokenizer.eos_id, *([known_eos] if isinstance(known_eos, int) else known_eos or [])}
    if template:
        stops |= TEMPLATES[template].stop_ids(tokenizer)
    ids: dict[str, Any] = {"eos_token_id": sorted(stops) if len(stops) > 1 else stops.pop()}
    if tokenizer.bos_id is not None:
        ids["bos_token_id"] = tokenizer.bos_id
    if tokenizer.pad_id is not None:
        ids["pad_token_id"] = tokenizer.pad_id
    return ids


def announced(
    blocks: Callable[[TensorSpec], Iterable[torch.Tensor]], specs: Iterable[TensorSpec], announce: Announce
) -> Callable[[TensorSpec], Iterable[torch.Tensor]]:
    """Return the blocks with an announcement before each tensor, `specs` being all that will be asked for."""
    total = max(1, sum(spec.nbytes for spec in specs))
    written = 0

    def with_announcement(spec: TensorSpec) -> Iterable[torch.Tensor]:
        nonlocal written
        announce(f"writing {spec.name}", written / total)
        written += spec.nbytes
        return blocks(spec)

    return with_announcement


def write_configs(target: Path, config: Mapping[str, Any], tokenizer: TextTokenizer) -> None:
    """Write config.json and generation_config.json of a new model, with the ids of its tokenizer."""
    ids = token_ids(tokenizer)
    write_json(target / CONFIG_FILE, {**config, "bos_token_id": None, "pad_token_id": None, **ids})
    write_json(target / GENERATION_FILE, ids)
