"""Safetensors as streams: what is written reads back, and damaged files are named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.digests import digest_file, digest_tensor
from herdsman_trainer.weights.reading import INDEX_FILE, open_model_weights, open_safetensors, read_header
from herdsman_trainer.weights.tensor_digests import DIGESTS_FILE
from herdsman_trainer.weights.tensor_spec import TensorSpec
from herdsman_trainer.weights.writing import plan_shards, write_model_weights, write_safetensors, write_tensors

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.arange(3, dtype=torch.bfloat16),
    "c": torch.tensor(7, dtype=torch.int64),
    "d": torch.ones(5, dtype=torch.float16),
}
SPECS = [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()]


def write_model(directory, max_shard_bytes):
    directory.mkdir(exist_ok=True)
    return write_model_weights(directory, SPECS, lambda spec: [TENSORS[spec.name]], max_shard_bytes=max_shard_bytes)


def test_a_written_file_is_read_by_the_safetensors_library(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS)
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], TENSORS[name]) and read[name].dtype == TENSORS[name].dtype for name in TENSORS)


def test_a_file_of_the_safetensors_library_is_read_tensor_by_tensor(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    with open_safetensors(tmp_path / "x.safetensors") as files:
        read = dict(files)
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize(
    ("limit", "files"),
    [(1 << 20, ["model.safetensors"]), (1, [f"model-0000{n}-of-00004.safetensors" for n in range(1, 5)])],
)
def test_a_model_is_written_as_one_file_or_as_shards_with_an_index(tmp_path, limit, files):
    written = write_model(tmp_path, limit)
    assert [name for name in sorted(written) if name not in (INDEX_FILE, DIGESTS_FILE)] == files
    assert (INDEX_FILE in written) == (len(files) > 1)
    for name, digest in written.items():
        assert digest == digest_file(tmp_path / name)
    with open_model_weights(tmp_path) as weights:
        assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in weights)
        assert weights.specs.keys() == TENSORS.keys()


def test_rows_may_come_in_blocks(tmp_path):
    tensor = TENSORS["a"]
    write_safetensors(tmp_path / "x.safetensors", SPECS[:1], lambda _: (tensor[:1], tensor[1:]))
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], tensor)


@pytest.mark.parametrize("blocks", [[torch.ones(1, 3)], [torch.ones(2, 3, dtype=torch.float16)]], ids=["short", "type"])
def test_blocks_that_do_not_make_the_tensor_are_a_bug(tmp_path, blocks):
    with pytest.raises(ValueError, match="a "):
        write_safetensors(tmp_path / "x.safetensors", SPECS[:1], lambda _: blocks)


def test_shards_are_filled_in_order_and_only_a_single_tensor_exceeds_the_limit():
    sizes = [3, 3, 9, 1, 1]
    specs = [TensorSpec(str(index), torch.uint8, (size,)) for index, size in enumerate(sizes)]
    assert [[spec.name for spec in shard] for shard in plan_shards(specs, 6)] == [["0", "1"], ["2"], ["3", "4"]]


def test_the_digest_of_a_tensor_does_not_depend_on_its_file():
    tensor = TENSORS["a"]
    assert digest_tensor("a", tensor) == digest_tensor("a", tensor.T.contiguous().T)
    others = [("b", tensor), ("a", tensor.reshape(3, 2)), ("a", tensor.to(torch.float64)), ("a", tensor + 1)]
    assert digest_tensor("a", tensor) not in {digest_tensor(*other) for other in others}


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def cut_in_header(path):
    path.write_bytes(path.read_bytes()[:40])


def append(path):
    path.write_bytes(path.read_bytes() + b"x")


def make_html(path):
    path.write_bytes(b"<html><body>Not found</body></html>")


def make_float8(path):
    head = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"x")


def garble_header(path):
    head = b'{"a": 3}'
    path.write_bytes(len(head).to_bytes(8, "little") + head)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "missing"),
        (cut, "is cut"),
        (cut_in_header, "ends? inside its header"),
        (append, "longer"),
        (make_html, "not in the safetensors format"),
        (make_float8, "F8_E4M3"),
        (garble_header, "damaged"),
    ],
)
def test_a_damaged_shard_is_refused_by_name(tmp_path, damage, says):
    write_model(tmp_path, 1)
    shard = tmp_path / "model-00002-of-00004.safetensors"
    damage(shard)
    with pytest.raises(BadInput, match=says) as caught:
        open_model_weights(tmp_path)
    assert caught.value.file == str(shard)
    assert caught.value.hint


def edit_index(tmp_path, change):
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    change(index)
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda index: index["weight_map"].update(z="model-00001-of-00004.safetensors"), "lacks z"),
        (lambda index: index["weight_map"].update(z="../../etc/passwd"), "no plain file name"),
        (lambda index: index.pop("weight_map"), "weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path, change, says):
    write_model(tmp_path, 1)
    edit_index(tmp_path, change)
    with pytest.raises(BadInput, match=says):
        open_model_weights(tmp_path)


def test_a_malformed_index_is_named_with_its_line(tmp_path):
    write_model(tmp_path, 1)
    (tmp_path / INDEX_FILE).write_text('{\n"weight_map": {\n')
    with pytest.raises(BadInput) as caught:
        open_model_weights(tmp_path)
    assert (caught.value.file, caught.value.line) == (str(tmp_path / INDEX_FILE), 3)


@pytest.mark.parametrize(
    ("file", "says"),
    [("pytorch_model.bin", "safetensors"), ("m.gguf", "ModelImport"), ("README.md", "safetensors weights")],
)
def test_a_directory_without_safetensors_says_what_to_do_with_what_it_has(tmp_path, file, says):
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(BadInput, match="neither") as caught:
        open_model_weights(tmp_path)
    assert says in caught.value.hint


def test_the_header_keeps_wide_types_aligned(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"half": TENSORS["b"], "wide": TENSORS["c"], "single": TENSORS["a"]})
    assert list(read_header(tmp_path / "x.safetensors")) == ["wide", "single", "half"]
