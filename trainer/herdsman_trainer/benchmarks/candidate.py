"""A model that is evaluated: opened and checked at once, its weights read when they are first needed."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from herdsman.api.job_config import ModelToEvaluate
from herdsman_trainer.errors import BadInput
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.model_prompts import choose_template, starts_with_bos
from herdsman_trainer.prompts import PromptTemplate
from herdsman_trainer.tokenizers import TextTokenizer
from herdsman_trainer.weights.architecture import check_tensors
from herdsman_trainer.weights.chain import Chain, open_chain
from herdsman_trainer.weights.in_memory import model_in_memory
from herdsman_trainer.weights.vocabulary import merged_config

log = logging.getLogger(__name__)

Device = Literal["cpu", "cuda"]


class Candidate:
    """A model, or a base with adapters merged in memory, with its tokenizer and its prompt template."""

    def __init__(self, asked: ModelToEvaluate, directories: Sequence[Path], device: Device) -> None:
        """Open the model's directory and those of its adapters; BadInput where they do not belong together."""
        self.name = asked.name
        self.device = device
        self._chain: Chain = open_chain(
            directories[0], directories[1:], dtype=torch.float32 if device == "cpu" else None
        )
        for note in self._chain.notes:
            log.warning("%s: %s", self.name, note)
        config = merged_config(self._chain.model.config, self._chain.merge.plan, self._chain.tokenizer.pad_id)
        check_tensors(self._chain.merge.plan.specs, config, str(self._chain.model.path))
        self._config = config
        self.tokenizer: TextTokenizer = self._chain.tokenizer
        directory = self._chain.tokenizer_directory
        self.template: PromptTemplate = choose_template(
            asked.template or self._chain.prompt_template, directory, self.tokenizer
        )
        self.bos = starts_with_bos(directory, self.tokenizer)
        length = config.get("max_position_embeddings")
        if not isinstance(length, int):
            raise BadInput("config.json has no max_position_embeddings.", file=str(self._chain.model.path))
        self.context_length = length
        """Tokens the model takes."""
        self.digests: Sequence[str | None] = self._chain.digests
        """Of the model and its adapters, in order; None for plain files."""
        self._model: Any = None

    @property
    def model(self) -> Any:
        """The model, ready to answer; float32 on the CPU, in the type of its files on a GPU."""
        if self._model is None:
            self._model = self._load()
        return self._model

    def release(self) -> None:
        """Give the memory of the weights back."""
        self._model = None
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _load(self) -> Any:
        if self.device == "cuda" and not torch.cuda.is_available():
            hint = "Set compute.gpusPerNode to 0, or run on a machine with a GPU and its driver."
            raise BadInput("The Evaluation is to use a GPU and finds none.", hint=hint)
        specs = self._chain.merge.plan.specs
        log.info("Loading %s: %d tensors.", self.name, len(specs))
        with HEART.handling(sum(spec.nbytes for spec in specs)):
            return model_in_memory(self._chain, self._config).to(self.device)
