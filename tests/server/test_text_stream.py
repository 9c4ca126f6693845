"""Text comes out in whole characters and without stop strings."""

import pytest

from herdsman_server.text_stream import IncrementalDecoder, StopStrings
from herdsman_trainer.tokenizers import load_tokenizer
from tiny import tiny_bpe_tokenizer, tiny_sentencepiece

TEXTS = ["Hello world", "为什么天空是蓝色的？", "  two  spaces\n\n", "a é 你 b", "🦙 ends", "12345"]


@pytest.fixture(scope="module", params=[tiny_sentencepiece, tiny_bpe_tokenizer], ids=["SentencePiece", "BPE"])
def tokenizer(request, tmp_path_factory):
    return load_tokenizer(request.param(tmp_path_factory.mktemp("tokenizer")))


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_make_the_text_and_never_hold_half_a_character(tokenizer, text):
    decoder = IncrementalDecoder(tokenizer.decode)
    pieces = [decoder.push(token) for token in tokenizer.encode(text)]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "".join(pieces) + decoder.finish() == text


def test_a_chinese_character_comes_with_its_last_byte(tokenizer):
    decoder = IncrementalDecoder(tokenizer.decode)
    ids = tokenizer.encode("你")
    assert len(ids) >= 3
    assert "".join([decoder.push(token) for token in ids[:-1]]).strip() == ""
    assert decoder.push(ids[-1]) == "你"


def test_bytes_of_a_character_that_was_cut_off_are_dropped(tokenizer):
    decoder = IncrementalDecoder(tokenizer.decode)
    pieces = [decoder.push(token) for token in tokenizer.encode("好 你")[:-1]]
    assert ("".join(pieces) + decoder.finish()).strip() == "好"


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "found"),
    [
        (["END"], ["one EN", "D two"], ["one ", ""], True),
        (["END"], ["one EN", "TER"], ["one ", "ENTER"], False),
        (["\n\n", "###"], ["a\n", "b#", "##c"], ["a", "\nb", ""], True),
        (["b", "ab"], ["xab"], ["x"], True),
        ([], ["anything"], ["anything"], False),
        (["aab"], ["aaaa", "b"], ["aa", ""], True),
    ],
    ids=["over two pieces", "not after all", "several", "the first place counts", "none", "overlapping"],
)
def test_text_is_shown_up_to_the_first_stop_string(stops, pieces, shown, found):
    filter_ = StopStrings(stops)
    assert [filter_.push(piece) for piece in pieces] == shown
    assert filter_.found is found


def test_what_was_held_back_in_vain_is_shown_at_the_end():
    filter_ = StopStrings(["END"])
    assert filter_.push("the EN") == "the "
    assert filter_.finish() == "EN"


def test_nothing_follows_a_stop_string():
    filter_ = StopStrings(["."])
    assert (filter_.push("a. b"), filter_.push("c"), filter_.finish()) == ("a", "", "")
