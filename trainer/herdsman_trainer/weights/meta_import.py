"""Opens Meta's consolidated.*.pth for ModelImport."""

from pathlib import Path

import torch

from herdsman_trainer.tokenizer_files import TOKENIZER_FILES
from herdsman_trainer.tokenizers import TextTokenizer
from herdsman_trainer.weights.architecture import check_tensors
from herdsman_trainer.weights.chain import CONFIG_FILE, GENERATION_FILE
from herdsman_trainer.weights.merge import EMBEDDING
from herdsman_trainer.weights.meta_model import open_meta
from herdsman_trainer.weights.meta_params import PARAMS_FILE
from herdsman_trainer.weights.meta_tokenizer import (
    END_OF_MESSAGE,
    END_OF_TURN,
    find_meta_tokenizer,
    write_meta_tokenizer,
)
from herdsman_trainer.weights.model_writing import Announce, token_ids, write_json
from herdsman_trainer.weights.opened_model import Digests, OpenedModel, announced_blocks
from herdsman_trainer.weights.vocabulary import main_dtype
from herdsman_trainer.weights.writing import write_model_weights


def open_meta_model(directory: Path, root: Path, dtype: torch.dtype | None) -> OpenedModel:
    """Open a directory with params.json and consolidated.*.pth; the result has their type unless `dtype` is given.

    The tokenizer may lie one directory above, inside of `root`. Raises BadInput as open_meta and find_meta_tokenizer
    do.
    """
    meta = open_meta(directory)
    stored = main_dtype(dtype or meta.parts[EMBEDDING][0].dtype)
    specs, config = meta.specs(dtype), meta.config(stored)
    check_tensors(specs, config, str(directory))
    tokenizer = find_meta_tokenizer(directory, root)

    def write(target: Path, text: TextTokenizer, announce: Announce) -> Digests:
        digests = write_model_weights(target, specs, announced_blocks(meta.blocks, specs, announce))
        ids = token_ids(text)
        write_json(target / CONFIG_FILE, {**config, "bos_token_id": None, "pad_token_id": None, **ids})
        # The files do not say whether the model was tuned to converse; stopping at the end of a turn harms no other.
        turns = [text.control_id(token) for token in (END_OF_TURN, END_OF_MESSAGE)]
        write_json(target / GENERATION_FILE, token_ids(text, known_eos=[end for end in turns if end is not None]))
        return digests

    return OpenedModel(
        where=directory,
        weights=meta.files,
        others=[
            directory / PARAMS_FILE,
            *(tokenizer / name for name in TOKENIZER_FILES if (tokenizer / name).is_file()),
        ],
        specs=specs,
        vocab_size=meta.shapes[EMBEDDING][0],
        dtype=stored,
        write_tokenizer=lambda target: write_meta_tokenizer(
            tokenizer, target, meta.shapes[EMBEDDING][0], scaled_rope=meta.params.scaling is not None
        ),
        write=write,
        figures={
            "tensors": len(specs),
            "checkpoint_files": len(meta.files),
            "tied_embeddings": str(config["tie_word_embeddings"]).lower(),
            "max_position_embeddings": meta.params.context,
        },
        tokenizer_from=tokenizer,
        form="meta",
        size=(meta.params.dim, meta.params.layers),
    )
