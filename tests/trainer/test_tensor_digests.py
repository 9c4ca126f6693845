"""tensor-digests.json says what each tensor is, whatever files it is spread over."""

import pytest
import torch

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.digests import TensorHash, digest_tensor
from herdsman_trainer.weights.reading import open_model_weights
from herdsman_trainer.weights.tensor_digests import DIGESTS_FILE, PassingFile, read_tensor_digests
from herdsman_trainer.weights.tensor_spec import TensorSpec, dtype_name, tensor_bytes
from herdsman_trainer.weights.writing import write_model_weights

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(4, 3),
    "b": torch.arange(3, dtype=torch.bfloat16),
    "c": torch.tensor(7, dtype=torch.int64),
}
SPECS = [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()]


def write(directory, limit):
    directory.mkdir()
    return write_model_weights(directory, SPECS, lambda spec: [TENSORS[spec.name]], max_shard_bytes=limit)


def test_they_are_the_same_whatever_the_size_of_the_shards(tmp_path):
    one, several = write(tmp_path / "one", 1 << 20), write(tmp_path / "several", 1)
    assert one[DIGESTS_FILE] == several[DIGESTS_FILE]
    assert one.keys() != several.keys()


def test_each_is_the_digest_of_the_tensor_with_its_type_and_shape(tmp_path):
    write(tmp_path / "model", 1)
    digests = read_tensor_digests(tmp_path / "model")
    assert digests.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (digests[name].dtype, digests[name].shape) == (dtype_name(tensor.dtype), tuple(tensor.shape))
        assert digests[name].sha256 == digest_tensor(name, tensor)


def test_blocks_of_rows_make_the_digest_of_the_tensor():
    digest = TensorHash(SPECS[0])
    for rows in TENSORS["a"].split(3):
        digest.update(tensor_bytes(rows))
    assert digest.hexdigest() == digest_tensor("a", TENSORS["a"])


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_they_are_taken_while_a_file_passes_in_chunks(tmp_path, chunk):
    write(tmp_path / "model", 1 << 20)
    passing = PassingFile(open_model_weights(tmp_path / "model").files[0])
    content = passing.path.read_bytes()
    for start in range(0, len(content), chunk):
        passing.update(content[start : start + chunk])
    assert passing.digests == read_tensor_digests(tmp_path / "model")


def test_an_artifact_without_them_has_none(tmp_path):
    assert read_tensor_digests(tmp_path) is None


@pytest.mark.parametrize("content", ["[]", '{"a": {"dtype": "float32"}}', '{"a": 3}', "{"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / DIGESTS_FILE).write_text(content)
    with pytest.raises(BadInput) as caught:
        read_tensor_digests(tmp_path)
    assert caught.value.file == str(tmp_path / DIGESTS_FILE)
    assert "delete this file" in caught.value.hint
