"""The forms a merge is written in: one sink for each, fed by the one pass."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from herdsman.api.v1alpha1.lora_merge import HuggingFaceOutput, MergeOutputs
from herdsman_trainer.tokenizer_files import SENTENCEPIECE_FILE
from herdsman_trainer.tokenizers import copy_tokenizer
from herdsman_trainer.weights.chain import Chain
from herdsman_trainer.weights.draft_files import DraftFiles
from herdsman_trainer.weights.gguf_output import (
    gguf_description,
    gguf_modelfile,
    open_gguf_sinks,
    write_gguf_companions,
)
from herdsman_trainer.weights.gguf_writing import gguf_path
from herdsman_trainer.weights.meta_params import PARAMS_FILE
from herdsman_trainer.weights.meta_writing import params
from herdsman_trainer.weights.model_writing import result_config, write_json
from herdsman_trainer.weights.pth_sink import DIRECTORY as PTH_DIRECTORY
from herdsman_trainer.weights.pth_sink import PthSink
from herdsman_trainer.weights.safetensors_sink import SafetensorsSink, Shards, lay_out
from herdsman_trainer.weights.sinks import Sink

HUGGINGFACE, PTH = "huggingface", "pth"


def in_file_order(chain: Chain, outputs: MergeOutputs) -> tuple[Chain, Shards]:
    """Return the chain with its tensors in the order in which they lie in the Hugging Face files, and these files."""
    limit = (outputs.huggingface or HuggingFaceOutput()).max_shard_mebibytes << 20
    shards = lay_out(chain.merge.plan.specs, limit)
    plan = chain.merge.plan.in_order(spec.name for shard in shards for spec in shard)
    return replace(chain, merge=replace(chain.merge, plan=plan)), shards


def open_sinks(
    chain: Chain,
    shards: Shards,
    outputs: MergeOutputs,
    open_files: Callable[[str], DraftFiles],
    *,
    name: str,
    template: str | None = None,
    importance_matrix: Path | None = None,
) -> Mapping[str, Sink]:
    """Return the sinks of the outputs by their labels; `name` is the model's, for the names of files.

    Raises BadInput where a form cannot hold the model, or the importance matrix of GGUF files is not the model's.
    """
    specs = chain.merge.plan.specs
    sinks: dict[str, Sink] = {}
    if outputs.huggingface is not None:
        sinks[HUGGINGFACE] = SafetensorsSink(open_files(HUGGINGFACE), shards)
    if outputs.pth is not None:
        sinks[PTH] = PthSink(open_files(PTH), specs, result_config(chain), outputs.pth.shards)
    if outputs.gguf:
        labels = [gguf_path(name, output) for output in outputs.gguf]
        gguf = open_gguf_sinks(
            chain, outputs.gguf, open_files, name=name, template=template, importance_matrix=importance_matrix
        )
        sinks |= dict(zip(labels, gguf, strict=True))
    if outputs.ollama is not None:
        gguf_modelfile(gguf_description(chain, name, template), outputs, outputs.ollama)
    return sinks


def write_beside(chain: Chain, outputs: MergeOutputs, target: Path, *, name: str, template: str | None = None) -> None:
    """Write the small files that belong to the forms besides Hugging Face's."""
    if outputs.gguf:
        write_gguf_companions(target, gguf_description(chain, name, template), outputs)
    if outputs.pth is not None:
        directory = target / PTH_DIRECTORY
        write_json(directory / PARAMS_FILE, params(result_config(chain)))
        if (model := chain.tokenizer_directory / SENTENCEPIECE_FILE).is_file():
            shutil.copyfile(model, directory / SENTENCEPIECE_FILE)
        else:
            copy_tokenizer(chain.tokenizer_directory, directory)
