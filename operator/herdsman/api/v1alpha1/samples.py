"""What a model writes before, during and after a training, to be read by people."""

from typing import Annotated

from pydantic import Field

from herdsman.api.meta import ApiModel

SamplePrompt = Annotated[str, Field(min_length=1, max_length=2000)]


class Samples(ApiModel):
    """Texts that the model continues, or instructions that it answers; they are shown in the report."""

    prompts: list[SamplePrompt] = Field(default_factory=list, max_length=16)
    """What it is given; the beginnings of held-out texts, or held-out instructions, unless set."""
    count: int = Field(default=3, ge=0, le=16)
    """How many of those are taken where no prompts are set; 0 writes no samples."""
    max_tokens: int = Field(default=48, ge=1, le=512)
    """Tokens of an answer at most; each is the likeliest one."""
    every_steps: int | None = Field(default=None, ge=1, le=1000000)
    """Optimizer steps between samples; only before and after the run unless set."""
