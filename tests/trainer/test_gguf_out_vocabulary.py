"""Tokenizers as metadata of a GGUF file, and those that llama.cpp cannot follow."""

import json

import pytest
from gguf import TokenType

from herdsman_trainer.errors import BadInput
from herdsman_trainer.sentencepiece_merge import PAD
from herdsman_trainer.tokenizer_merge import merge_tokenizer
from herdsman_trainer.tokenizers import load_tokenizer
from herdsman_trainer.weights.gguf_metadata import GgufDescription
from herdsman_trainer.weights.gguf_tokenizer import SPLITS
from herdsman_trainer.weights.gguf_vocabulary import read_vocabulary
from tiny import (
    ENGLISH,
    _train_sentencepiece,
    tiny_bpe_tokenizer,
    tiny_chatml_tokenizer,
    tiny_chinese_sentencepiece,
    tiny_sentencepiece,
)


def vocabulary(directory):
    return read_vocabulary(directory, load_tokenizer(directory).vocab_size)


def test_a_sentencepiece_model_keeps_pieces_scores_and_types(tmp_path):
    found = vocabulary(tiny_sentencepiece(tmp_path))
    assert (found.model, found.pre, found.merges) == ("llama", "default", None)
    assert found.tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert found.types[:4] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    assert len(found.tokens) == len(found.types) == len(found.scores) == 400
    assert found.scores[259:262] == [0.0, -1.0, -2.0]
    assert (found.bos_id, found.eos_id, found.unknown_id, found.pad_id) == (1, 2, 0, None)
    assert (found.add_bos, found.add_space_prefix) == (True, True)


def test_padding_is_out_of_the_reach_of_text(tmp_path):
    (tmp_path / "merged").mkdir()
    merge_tokenizer(
        tiny_sentencepiece(tmp_path / "base"),
        [tiny_chinese_sentencepiece(tmp_path / "zh") / "tokenizer.model"],
        tmp_path / "merged",
        pad=True,
    )
    found = vocabulary(tmp_path / "merged")
    assert found.tokens[found.pad_id] == PAD
    assert found.types[found.pad_id] == TokenType.CONTROL
    assert found.types[400:410] == [TokenType.NORMAL] * 10
    assert found.scores[400:] == [0.0] * (len(found.tokens) - 400)


def test_ids_that_no_piece_has_are_unused(tmp_path):
    tiny_sentencepiece(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<extra>": 403}))
    found = vocabulary(tmp_path)
    assert found.tokens[400:] == ["[UNUSED400]", "[UNUSED401]", "[UNUSED402]", "<extra>"]
    assert found.types[400:] == [*[TokenType.UNUSED] * 3, TokenType.CONTROL]


@pytest.mark.parametrize("pre", list(SPLITS))
def test_every_known_way_of_splitting_text_has_its_word(tmp_path, pre):
    tiny_bpe_tokenizer(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    from tokenizers import Tokenizer, models

    split = Tokenizer(models.BPE())
    split.pre_tokenizer = SPLITS[pre]()
    document["pre_tokenizer"] = json.loads(split.to_str())["pre_tokenizer"]
    document["model"]["ignore_merges"] = pre == "llama-bpe"
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    found = vocabulary(tmp_path)
    assert (found.model, found.pre, found.scores, found.notes) == ("gpt2", pre, None, ())
    assert len(found.merges) == len(document["model"]["merges"])
    assert all(merge.count(" ") == 1 for merge in found.merges)


def test_control_tokens_of_a_byte_level_bpe_are_controls_and_added_words_are_the_users(tmp_path):
    (tmp_path / "merged").mkdir()
    sources = [tiny_chinese_sentencepiece(tmp_path / "zh") / "tokenizer.model"]
    merge_tokenizer(tiny_bpe_tokenizer(tmp_path / "base"), sources, tmp_path / "merged", pad=True)
    found = vocabulary(tmp_path / "merged")
    kinds = dict(zip(found.tokens, found.types, strict=True))
    assert kinds["<|eot_id|>"] == kinds["[PAD]"] == TokenType.CONTROL
    assert kinds["学习"] == TokenType.USER_DEFINED
    assert "cuts text at the leftmost of them, llama.cpp at the longest first" in found.notes[0]


@pytest.mark.parametrize(
    ("template", "adds"), [("alpaca", True), ("llama-2", True), ("llama-3", False), ("chatml", False), (None, True)]
)
def test_bos_is_added_where_the_prompts_begin_with_it(tmp_path, template, adds):
    found = vocabulary(tiny_bpe_tokenizer(tmp_path))
    assert GgufDescription("tiny", {}, found, 0, template).add_bos is adds


def unigram(directory):
    return tiny_chinese_sentencepiece(directory)


def normalising(directory):
    directory.mkdir()
    options = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "nmt_nfkc"}
    (directory / "tokenizer.model").write_bytes(_train_sentencepiece(ENGLISH, vocab_size=400, **options))
    return directory


def without_bytes(directory):
    directory.mkdir()
    options = {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    (directory / "tokenizer.model").write_bytes(_train_sentencepiece(ENGLISH, vocab_size=200, **options))
    return directory


def changed(directory, **members):
    tiny_chatml_tokenizer(directory)
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | members))
    return directory


def with_normaliser(directory):
    return changed(directory, normalizer={"type": "NFC"})


def split_otherwise(directory):
    steps = [
        {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    return changed(directory, pre_tokenizer={"type": "Sequence", "pretokenizers": steps})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (unigram, "is not a BPE"),
        (normalising, "normalises text"),
        (without_bytes, "has no pieces for the 256 bytes"),
        (with_normaliser, "normalises text before it splits it"),
        (split_otherwise, r"splits text in a way llama\.cpp has no word for \(gpt-2, smollm, llama-bpe\)"),
    ],
)
def test_a_tokenizer_that_llama_cpp_cannot_express_is_refused(tmp_path, build, message):
    directory = build(tmp_path / "tokenizer")
    with pytest.raises(BadInput, match=rf"{message}.*which llama\.cpp cannot express\. Choose the outputs huggingface"):
        vocabulary(directory)


def test_a_word_taken_whole_or_not_is_told_where_llama_cpp_differs(tmp_path):
    tiny_bpe_tokenizer(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    document["model"]["ignore_merges"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert "(ignore_merges), is bound to the splitting in llama.cpp (llama-bpe)" in vocabulary(tmp_path).notes[0]
