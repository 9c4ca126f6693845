"""Turns a GGUF file into a Hugging Face model directory."""

from pathlib import Path

import torch

from herdsman_trainer.tokenizers import copy_tokenizer, load_tokenizer
from herdsman_trainer.weights.architecture import check_tensors
from herdsman_trainer.weights.chain import has_tokenizer
from herdsman_trainer.weights.gguf_model import open_gguf
from herdsman_trainer.weights.gguf_tokenizer import write_gguf_tokenizer
from herdsman_trainer.weights.model_writing import Announce, Figures, WrittenModel, announced, write_configs
from herdsman_trainer.weights.vocabulary import check_tokenizer
from herdsman_trainer.weights.writing import write_model_weights


def write_gguf_model(path: Path, target: Path, dtype: torch.dtype, announce: Announce) -> WrittenModel:
    """De-quantise a GGUF file into an empty directory, in the given type.

    Its tokenizer is rebuilt from the file, unless tokenizer files lie beside it: then those are taken. Raises
    BadInput as open_gguf and write_gguf_tokenizer do, and where the file lacks a tensor.
    """
    model = open_gguf(path)
    config, specs = model.config(dtype), model.specs(dtype)
    check_tensors(specs, config, str(path))
    if has_tokenizer(path.parent):
        copy_tokenizer(path.parent, target)
    else:
        write_gguf_tokenizer(model.metadata, target, path)
    tokenizer = load_tokenizer(target)
    rows = model.vocab_size
    check_tokenizer(rows, tokenizer.vocab_size, model=str(path), tokenizer=str(path.parent))
    digests = write_model_weights(target, specs, announced(model.blocks, specs, announce))
    write_configs(target, config, tokenizer)
    figures: Figures = {
        "tensors": len(specs),
        "gguf_types": " ".join(f"{name}:{count}" for name, count in model.quantisation.items()),
        "tied_embeddings": str(model.tied).lower(),
    }
    return WrittenModel(rows, tokenizer, dtype, figures, digests)
