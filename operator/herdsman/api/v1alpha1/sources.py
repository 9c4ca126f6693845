"""References: where a resource takes its inputs from. References make the pipeline; nobody writes a workflow."""

from typing import Annotated, Literal

from pydantic import Field

from herdsman.api.meta import DNS_LABEL, ApiModel
from herdsman.api.v1alpha1.schema import OneOf

RELATIVE_PATH = r"^(\.|[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*)$"
"""A relative path without "..", "//" or a leading "/" (and no hidden files)."""

LocalName = Annotated[str, Field(pattern=DNS_LABEL, min_length=1, max_length=40)]
ClaimName = Annotated[str, Field(pattern=DNS_LABEL, min_length=1, max_length=63)]
RelativePath = Annotated[str, Field(pattern=RELATIVE_PATH, min_length=1, max_length=200)]


class VolumeSource(ApiModel):
    """Files on a persistent volume claim; with `herdsman run`, a directory given by `--volume CLAIM=DIRECTORY`."""

    claim: ClaimName
    """The PersistentVolumeClaim, in the same namespace."""
    path: RelativePath = "."
    """The file or directory on the volume, relative and without parent directories."""


class ModelRef(OneOf):
    """A model: full weights with their tokenizer."""

    model_import: LocalName | None = None
    """The name of a ModelImport."""
    pretrain_job: LocalName | None = None
    """The name of a PretrainJob of stage Full."""
    lora_merge: LocalName | None = None
    """The name of a LoRAMerge."""
    volume: VolumeSource | None = None
    """A Hugging Face model directory on a volume."""


class AdapterRef(OneOf):
    """An adapter: LoRA matrices, fully trained embeddings, or both."""

    pretrain_job: LocalName | None = None
    """The name of a PretrainJob of stage EmbeddingsOnly or LoRA."""
    sft_job: LocalName | None = None
    """The name of an SFTJob."""
    volume: VolumeSource | None = None
    """A peft adapter directory on a volume."""


class TokenizerRef(OneOf):
    """A tokenizer."""

    tokenizer_merge: LocalName | None = None
    """The name of a TokenizerMerge."""
    model_import: LocalName | None = None
    """The name of a ModelImport, whose tokenizer is taken."""
    volume: VolumeSource | None = None
    """A directory with tokenizer.model or tokenizer.json on a volume."""


class DatasetRef(OneOf):
    """Text or instruction records."""

    volume: VolumeSource | None = None
    """A directory (or one file) on a volume."""


class ServerRef(OneOf):
    """A server that is asked."""

    model_server: LocalName | None = None
    """The name of a ModelServer."""


class SentencePieceRef(OneOf):
    """A SentencePiece model file whose pieces are appended."""

    volume: VolumeSource | None = None
    """The .model file on a volume."""


class ImportanceMatrixRef(OneOf):
    """What llama-imatrix wrote about the F16 or F32 file of the same merge."""

    volume: VolumeSource | None = None
    """The file on a volume, in its GGUF form or the older one."""


class GateRef(OneOf):
    """What has to have gone well before the resource that names it begins."""

    evaluation: LocalName | None = None
    """The name of an Evaluation, which is Complete where its thresholds are met."""


ReferenceKind = Literal[
    "ModelImport",
    "TokenizerMerge",
    "PretrainJob",
    "InstructionSet",
    "SFTJob",
    "LoRAMerge",
    "Evaluation",
    "ModelServer",
]
REFERENCE_KINDS: dict[str, ReferenceKind] = {
    "model_import": "ModelImport",
    "tokenizer_merge": "TokenizerMerge",
    "pretrain_job": "PretrainJob",
    "instruction_set": "InstructionSet",
    "sft_job": "SFTJob",
    "lora_merge": "LoRAMerge",
    "evaluation": "Evaluation",
    "model_server": "ModelServer",
}
"""Which kind a member of a reference names."""
