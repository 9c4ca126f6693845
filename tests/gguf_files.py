"""Writes GGUF files of a chain without the rest of a merge: what a merge does with its sinks, in its simplest form."""

from pathlib import Path
from typing import Any

import gguf
import numpy
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from herdsman.api.v1alpha1.lora_merge import GgufOutput
from herdsman_trainer.tokenizers import copy_tokenizer, load_tokenizer
from herdsman_trainer.weights.chain import Chain, open_chain
from herdsman_trainer.weights.draft_files import DraftFiles
from herdsman_trainer.weights.gguf_output import open_gguf_sinks
from herdsman_trainer.weights.gguf_writing import GgufSink
from herdsman_trainer.weights.sinks import Sink


def write_gguf_files(target: Path, model: Path | Chain, *types: str, name: str = "tiny", **options) -> dict[str, Path]:
    """Write one file of each type and return them by type."""
    chain = model if isinstance(model, Chain) else open_chain(model)
    sinks = sinks_of(target, chain, *types, name=name, **options)
    feed(chain, sinks)
    return {kind: target / sink.name for kind, sink in zip(types, sinks, strict=True)}


def sinks_of(target: Path, chain: Chain, *types: str, name: str = "tiny", **options) -> list[GgufSink]:
    outputs = [GgufOutput(type=kind) for kind in types]
    return open_gguf_sinks(chain, outputs, lambda _: DraftFiles(target), name=name, **options)


def wide_llama(directory: Path, tokenizer: Path, **fields) -> Path:
    """Write a random Llama of one layer whose sizes suit blocks of 256 values, with any field of its configuration."""
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
        **fields,
    }
    text_tokenizer = load_tokenizer(tokenizer)
    config = LlamaConfig(
        vocab_size=text_tokenizer.vocab_size,
        bos_token_id=text_tokenizer.bos_id,
        eos_token_id=text_tokenizer.eos_id,
        **sizes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        LlamaForCausalLM(config).save_pretrained(directory)
    copy_tokenizer(tokenizer, directory)
    return directory


def tensors_of(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def metadata_of(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def feed(chain: Chain, sinks: list[Sink], rows: int | None = None) -> None:
    """Pass every tensor of the chain to the sinks, whole or in blocks of about `rows` rows, and close their files."""
    for spec in chain.merge.plan.specs:
        tensor = chain.merge.tensor(spec.name)
        for sink in sinks:
            multiple = sink.row_multiple(spec)
            step = max(multiple, (rows or tensor.shape[0]) // multiple * multiple)
            sink.begin(spec)
            for block in tensor.split(step):
                sink.write(block)
            sink.end()
    for sink in sinks:
        sink.finish()
        sink.files.marks()
        sink.files.close()


def write_importance_matrix(path: Path, entries: dict[str, numpy.ndarray], count: float = 4.0) -> Path:
    """Write what llama-imatrix writes: sums of squares, and how many there were."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    for name, values in entries.items():
        writer.add_tensor(f"{name}.in_sum2", values[None] * count)
        writer.add_tensor(f"{name}.counts", numpy.full((1, 1), count, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
