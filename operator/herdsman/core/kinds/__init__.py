"""What is peculiar to one kind, one module each, and all of them by name."""

from collections.abc import Mapping
from typing import Any

from herdsman.core.kinds import (
    evaluation,
    instruction_set,
    lora_merge,
    model_import,
    model_server,
    pretrain_job,
    sft_job,
    tokenizer_merge,
)
from herdsman.core.kinds.rules import KindRules, RunKind

RUN_KINDS: Mapping[str, RunKind[Any]] = {
    "ModelImport": model_import.RULES,
    "TokenizerMerge": tokenizer_merge.RULES,
    "PretrainJob": pretrain_job.RULES,
    "InstructionSet": instruction_set.RULES,
    "SFTJob": sft_job.RULES,
    "LoRAMerge": lora_merge.RULES,
    "Evaluation": evaluation.RULES,
}
"""The kinds whose work is a Job."""

REGISTRY: Mapping[str, KindRules[Any]] = {**RUN_KINDS, "ModelServer": model_server.RULES}
"""Every kind."""
