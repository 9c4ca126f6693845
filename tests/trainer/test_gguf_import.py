"""GGUF files come in bit for bit as the gguf package computes them, with the scaling of the rotary embedding."""

import gguf
import numpy
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import peft_models as build
from gguf_files import wide_llama
from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.gguf_rope import llama3_divisors
from herdsman_trainer.weights.meta_params import llama3_rope
from imports import import_model
from tiny import tiny_chatml_tokenizer, tiny_llama
from tiny_gguf import LAYER, TOP, write_gguf

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
K_QUANTS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    root = tmp_path_factory.mktemp("chatml")
    return tiny_llama(root / "model", tiny_chatml_tokenizer(root / "tokenizer"), tied=True)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Of rows of 256 values, as k-quants need them."""
    root = tmp_path_factory.mktemp("wide")
    return wide_llama(root / "model", tiny_chatml_tokenizer(root / "tokenizer"))


def values_of(path, heads, kv_heads):
    """What gguf makes of a file, by transformers' names and in its order of rows."""
    values = {}
    for tensor in gguf.GGUFReader(path).tensors:
        array = numpy.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=numpy.float32)
        stem = tensor.name.removesuffix(".weight")
        back = {ours: theirs for theirs, ours in (TOP | LAYER).items()}
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            name = f"model.layers.{layer}.{back[part]}.weight"
            if part in ("attn_q", "attn_k"):
                array = halves(array, heads if part == "attn_q" else kv_heads)
        else:
            name = back[stem] + ".weight"
        values[name] = array
    return values


def halves(rows, heads):
    """First the even rows of a head, then the odd ones."""
    width = len(rows) // heads
    order = [head * width + row for head in range(heads) for row in (*range(0, width, 2), *range(1, width, 2))]
    return rows[order]


def assert_bits(directory, path, heads, kv_heads):
    ours = load_file(directory / "model.safetensors")
    theirs = values_of(path, heads, kv_heads)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.numpy().tobytes() == theirs[name].tobytes(), name
    build.load(directory)


@pytest.mark.parametrize("kind", PLAIN)
def test_every_plain_type_has_the_bits_of_ggmls_package(tmp_path, chatml, kind):
    path = write_gguf(tmp_path / "tiny.gguf", chatml, quantisation=kind)
    assert {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors} == {kind, "F32"}
    _, directory = import_model(tmp_path, path, dtype="float32")
    assert_bits(directory, path, 4, 2)


@pytest.mark.parametrize("kind", K_QUANTS)
def test_k_quants_have_the_bits_of_ggmls_package(tmp_path, wide, kind, monkeypatch):
    quantise = pytest.importorskip("libgguf").quantize_rows
    plain = gguf.quants.quantize
    monkeypatch.setattr(
        gguf.quants, "quantize", lambda rows, to: quantise(rows, to) if to.name in K_QUANTS else plain(rows, to)
    )
    path = write_gguf(tmp_path / "wide.gguf", wide, quantisation=kind)
    assert {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors} == {kind, "F32"}
    _, directory = import_model(tmp_path, path, dtype="float32")
    assert_bits(directory, path, 4, 2)


def add_divisors(path, divisors):
    """Write the file again with the tensor rope_freqs.weight, as llama.cpp's converter adds it."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_name("scaled.gguf"), "llama")
    for name, value in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind, *inner = value.types
            writer.add_key_value(name, value.contents(), kind, inner[0] if inner else None)
    writer.add_tensor("rope_freqs.weight", numpy.asarray(divisors, dtype=numpy.float32))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_name("scaled.gguf")


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_divisors_are_those_of_transformers(factor, head_dim):
    rope = llama3_rope(5e5, factor)
    config = LlamaConfig(
        hidden_size=head_dim, num_attention_heads=1, max_position_embeddings=131072, rope_parameters=rope
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 5e5 ** (torch.arange(0, head_dim, 2).float() / head_dim)
    torch.testing.assert_close(torch.tensor(llama3_divisors(rope, head_dim)).float(), plain / scaled, rtol=2e-5, atol=0)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_1s_divisors_become_the_parameters_they_were_made_of(tmp_path, chatml, factor):
    rope = llama3_rope(5e5, factor)
    plain = write_gguf(tmp_path / "plain.gguf", chatml, **{"llama.rope.freq_base": 5e5, "llama.context_length": 131072})
    path = add_divisors(plain, llama3_divisors(rope, 8))
    _, directory = import_model(tmp_path, path, dtype="float32")
    model = build.load(directory)
    assert {name: model.config.rope_parameters[name] for name in rope} == rope
    theirs = LlamaForCausalLM.from_pretrained(chatml)
    theirs.config.rope_parameters, theirs.config.max_position_embeddings = rope, 131072
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config)
    ids = torch.arange(200)[None]
    torch.testing.assert_close(model(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("metadata", "rope"),
    [
        ({}, {"rope_type": "default", "rope_theta": 1e4}),
        ({"llama.rope.scaling.type": "none"}, {"rope_type": "default", "rope_theta": 1e4}),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        ),
        ({"llama.rope.scale_linear": 2.5}, {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}),
    ],
    ids=["unsaid", "none", "linear", "linear as in 2023"],
)
def test_scaling_that_the_metadata_says_is_taken_over(tmp_path, chatml, metadata, rope):
    path = write_gguf(tmp_path / "tiny.gguf", chatml, **metadata)
    _, directory = import_model(tmp_path, path)
    config = build.load(directory).config
    assert {name: config.rope_parameters[name] for name in rope} == rope


def test_divisors_that_scale_nothing_are_no_scaling(tmp_path, chatml):
    path = add_divisors(write_gguf(tmp_path / "plain.gguf", chatml), numpy.ones(4))
    _, directory = import_model(tmp_path, path)
    assert build.load(directory).config.rope_parameters["rope_type"] == "default"


def test_divisors_of_unknown_figures_are_refused(tmp_path, chatml):
    plain = write_gguf(tmp_path / "plain.gguf", chatml, **{"llama.rope.freq_base": 5e5})
    other = {**llama3_rope(5e5, 8.0), "high_freq_factor": 2.0, "original_max_position_embeddings": 100}
    path = add_divisors(plain, llama3_divisors(other, 8))
    with pytest.raises(BadInput, match=r"tensor rope_freqs\.weight that is not Llama 3\.1's") as caught:
        import_model(tmp_path, path)
    assert (caught.value.file, "safetensors" in caught.value.hint) == (str(path), True)
