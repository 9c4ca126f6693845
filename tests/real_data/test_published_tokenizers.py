"""The real tokenizers are recognised when a model comes in with them, and refused beside another number of rows."""

import pytest

from herdsman_trainer.artifacts import read_manifest
from herdsman_trainer.errors import BadInput
from herdsman_trainer.tokenizer_merge import merge_tokenizer
from imports import import_model
from tiny_meta import random_llama, write_meta

pytestmark = pytest.mark.real_data
NAMES = {32000: "LLaMA", 49953: "Chinese-LLaMA", 49954: "Chinese-Alpaca"}


@pytest.fixture(scope="module")
def tokenizers(real_data, tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    found = {size: root / str(size) for size in NAMES}
    for directory in found.values():
        directory.mkdir()
    (found[32000] / "tokenizer.model").write_bytes((real_data / "tokenizer.model").read_bytes())
    for size, pad in ((49953, False), (49954, True)):
        merge_tokenizer(found[32000], [real_data / "chinese_sp.model"], found[size], pad=pad)
    return found


def checkpoint(directory, tokenizer, rows):
    write_meta(directory, random_llama(rows, heads=2, kv_heads=2), shards=2)
    (directory / "tokenizer.model").write_bytes((tokenizer / "tokenizer.model").read_bytes())
    return directory


@pytest.mark.parametrize("size", NAMES)
def test_a_published_tokenizer_is_recognised(tmp_path, tokenizers, size):
    """49,953 rows are odd: the two files of Chinese-LLaMA-13B hold 24,976 and 24,977 of the head."""
    artifact, directory = import_model(tmp_path, checkpoint(tmp_path / "meta", tokenizers[size], size))
    report = {metric.name: metric.value for metric in read_manifest(directory).report}
    assert (artifact.vocab_size, report["recognised_tokenizer"]) == (size, NAMES[size])


@pytest.mark.parametrize(("pieces", "rows"), [(49953, 49954), (49954, 49953), (32000, 49954), (49953, 32000)])
def test_a_tokenizer_beside_the_rows_of_another_is_refused(tmp_path, tokenizers, pieces, rows):
    with pytest.raises(BadInput, match=f"has {rows} rows and the tokenizer .* has {pieces} pieces") as caught:
        import_model(tmp_path, checkpoint(tmp_path / "meta", tokenizers[pieces], rows))
    assert caught.value.reason == "ArtifactMismatch"
    assert ("[PAD]" in caught.value.hint) == (abs(pieces - rows) == 1)
