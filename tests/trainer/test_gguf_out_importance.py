"""Importance matrices: what counts more is rounded better, as llama.cpp has it; files of another model are refused."""

import struct

import gguf
import numpy
import pytest
from safetensors.torch import load_file

from gguf_files import metadata_of, sinks_of, tensors_of, wide_llama, write_gguf_files, write_importance_matrix
from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.chain import open_chain
from herdsman_trainer.weights.gguf_types import gguf_name
from tiny import tiny_sentencepiece

NAME = "model.layers.0.mlp.up_proj.weight"
HEAVY = slice(0, 16)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    return wide_llama(root / "model", tiny_sentencepiece(root / "tokenizer"))


@pytest.fixture
def importance(model):
    return heavy_columns(model)


def heavy_columns(model):
    """Some columns a thousand times as important as others, for all matrices of the layers."""
    values = numpy.full(256, 1.0, dtype=numpy.float32)
    values[HEAVY] = 1000.0
    specs = open_chain(model).merge.plan.specs
    return {gguf_name(spec.name): values.copy() for spec in specs if "layers" in spec.name and len(spec.shape) > 1}


def write_old_matrix(path, entries, count=4):
    """As llama-imatrix wrote it until 2025."""
    data = struct.pack("<i", len(entries))
    for name, values in entries.items():
        data += struct.pack("<i", len(name)) + name.encode()
        data += struct.pack("<ii", count, values.size) + (values * count).astype("<f4").tobytes()
    path.write_bytes(data)
    return path


def errors(model, path):
    tensor = tensors_of(path)[gguf_name(NAME)]
    truth = load_file(model / "model.safetensors")[NAME].numpy()
    return (gguf.quants.dequantize(tensor.data, tensor.tensor_type) - truth) ** 2


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"])
def test_important_columns_are_rounded_better_than_without(tmp_path, model, importance, kind):
    matrix = write_importance_matrix(tmp_path / "imatrix.gguf", importance)
    plain = errors(model, write_gguf_files(tmp_path / "plain", model, kind)[kind])
    weighted = errors(model, write_gguf_files(tmp_path / "weighted", model, kind, importance_matrix=matrix)[kind])
    assert weighted[:, HEAVY].mean() < 0.97 * plain[:, HEAVY].mean()
    assert weighted.mean() < 3 * plain.mean()


def test_both_forms_of_the_file_give_the_same_weights(tmp_path, model, importance):
    new = write_importance_matrix(tmp_path / "imatrix.gguf", importance)
    old = write_old_matrix(tmp_path / "imatrix.dat", importance)
    written = [
        write_gguf_files(tmp_path / path.suffix, model, "Q4_K", importance_matrix=path)["Q4_K"].read_bytes()
        for path in (new, old)
    ]
    assert written[0] == written[1]


def test_types_that_use_no_weights_stay_as_they_are(tmp_path, model, importance):
    matrix = write_importance_matrix(tmp_path / "imatrix.gguf", importance)
    for kind in ("Q8_0", "F16"):
        plain = tensors_of(write_gguf_files(tmp_path / "plain", model, kind)[kind])
        weighted = tensors_of(write_gguf_files(tmp_path / "weighted", model, kind, importance_matrix=matrix)[kind])
        assert all(numpy.array_equal(plain[name].data, weighted[name].data) for name in plain)


def test_the_first_down_projections_get_a_lopsided_type_as_in_llama_cpp(tmp_path):
    deep = wide_llama(tmp_path / "model", tiny_sentencepiece(tmp_path / "tokenizer"), num_hidden_layers=8)
    matrix = write_importance_matrix(tmp_path / "imatrix.gguf", heavy_columns(deep))
    for kind, first in (("Q4_0", "Q4_1"), ("Q5_0", "Q5_1"), ("Q4_1", "Q4_1")):
        (sink,) = sinks_of(tmp_path, open_chain(deep), kind, importance_matrix=matrix)
        types = [sink.types[f"model.layers.{layer}.mlp.down_proj.weight"].name for layer in range(8)]
        assert types == [first, *[kind] * 7]


def test_the_metadata_says_that_there_were_weights(tmp_path, model, importance):
    matrix = write_importance_matrix(tmp_path / "imatrix.gguf", importance)
    written = write_gguf_files(tmp_path, model, "Q4_0", importance_matrix=matrix)
    assert metadata_of(written["Q4_0"])["quantize.imatrix.entries_count"] == 7


def without_a_matrix(entries):
    del entries["blk.0.attn_q.weight"]


def of_a_narrower_model(entries):
    entries["blk.0.ffn_down.weight"] = numpy.ones(128, dtype=numpy.float32)


def negative(entries):
    entries["blk.0.attn_k.weight"][3] = -1.0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_matrix, r"lacks 1 of 9 matrices, such as blk\.0\.attn_q\.weight\. Make it with llama-imatrix"),
        (of_a_narrower_model, r"has 128 columns for blk\.0\.ffn_down\.weight, and the model has 256"),
        (negative, r"holds values for blk\.0\.attn_k\.weight that are negative or not numbers"),
    ],
)
def test_a_matrix_of_another_model_is_refused(tmp_path, model, importance, damage, message):
    damage(importance)
    matrix = write_importance_matrix(tmp_path / "imatrix.gguf", importance)
    with pytest.raises(BadInput, match=message) as refused:
        write_gguf_files(tmp_path, model, "Q4_K", importance_matrix=matrix)
    assert refused.value.file == str(matrix)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(40), b"\xff" * 60, b"some text in a file\n" * 9])
def test_a_file_that_is_no_importance_matrix_is_refused(tmp_path, model, content):
    path = tmp_path / "imatrix.gguf"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="not a readable importance matrix"):
        write_gguf_files(tmp_path, model, "Q4_K", importance_matrix=path)


def test_a_directory_is_no_importance_matrix(tmp_path, model):
    with pytest.raises(BadInput, match="not a readable importance matrix"):
        write_gguf_files(tmp_path, model, "Q4_K", importance_matrix=tmp_path)
