"""TokenizerMerge: appends the pieces of SentencePiece models to a model's tokenizer."""

from typing import ClassVar, Literal

from pydantic import Field

from herdsman.api.meta import Resource
from herdsman.api.v1alpha1.compute import RunPolicy
from herdsman.api.v1alpha1.sources import DatasetRef, SentencePieceRef, TokenizerRef
from herdsman.api.v1alpha1.status import Status


class TokenizerMergeSpec(RunPolicy):
    """What is merged."""

    base: TokenizerRef
    """The tokenizer that is extended: SentencePiece (LLaMA), or byte-level BPE (Llama 3, SmolLM2)."""
    sources: list[SentencePieceRef] = Field(min_length=1, max_length=8)
    """The SentencePiece models whose pieces are appended, in order."""
    pad_token: bool = False
    """Appends the piece [PAD] last, which instruction tuning with the first generation's recipe needs."""
    sample: DatasetRef | None = None
    """Text on which tokens per character are reported before and after."""


class TokenizerMerge(Resource):
    """Extends a tokenizer: LLaMA's 32,000 pieces and a Chinese model's 20,000 become 49,953."""

    KIND: ClassVar[str] = "TokenizerMerge"
    kind: Literal["TokenizerMerge"] = "TokenizerMerge"
    spec: TokenizerMergeSpec
    status: Status | None = None
