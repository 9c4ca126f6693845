"""Opens a GGUF file for ModelImport."""

from pathlib import Path

import torch

from herdsman_trainer.tokenizer_files import TOKENIZER_FILES
from herdsman_trainer.tokenizers import TextTokenizer, copy_tokenizer
from herdsman_trainer.weights.architecture import check_tensors
from herdsman_trainer.weights.chain import has_tokenizer
from herdsman_trainer.weights.gguf_model import open_gguf
from herdsman_trainer.weights.gguf_tokenizer import write_gguf_tokenizer
from herdsman_trainer.weights.model_writing import Announce, write_configs
from herdsman_trainer.weights.opened_model import Digests, OpenedModel, announced_blocks
from herdsman_trainer.weights.writing import write_model_weights


def open_gguf_model(path: Path, dtype: torch.dtype) -> OpenedModel:
    """Open a GGUF file, whose values are computed in the given type.

    Its tokenizer is rebuilt from the file, unless tokenizer files lie beside it: then those are taken. Raises
    BadInput as open_gguf and write_gguf_tokenizer do, and where the file lacks a tensor.
    """
    model = open_gguf(path)
    config, specs = model.config(dtype), model.specs(dtype)
    check_tensors(specs, config, str(path))
    beside = [path.parent / name for name in TOKENIZER_FILES] if has_tokenizer(path.parent) else []

    def write_tokenizer(target: Path) -> None:
        if beside:
            copy_tokenizer(path.parent, target)
        else:
            write_gguf_tokenizer(model.metadata, target, path)

    def write(target: Path, tokenizer: TextTokenizer, announce: Announce) -> Digests:
        digests = write_model_weights(target, specs, announced_blocks(model.blocks, specs, announce))
        write_configs(target, config, tokenizer)
        return digests

    return OpenedModel(
        where=path,
        weights=[path],
        others=[file for file in beside if file.is_file()],
        specs=specs,
        vocab_size=model.vocab_size,
        dtype=dtype,
        write_tokenizer=write_tokenizer,
        write=write,
        figures={
            "tensors": len(specs),
            "gguf_types": " ".join(f"{name}:{count}" for name, count in model.quantisation.items()),
            "tied_embeddings": str(model.tied).lower(),
        },
        size=(config["hidden_size"], config["num_hidden_layers"]),
    )
