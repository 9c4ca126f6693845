"""The byte-level BPE merge: which pieces become added tokens, and that text comes back."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from herdsman_trainer.bpe_merge import merge_bpe
from herdsman_trainer.chat_templates import chat_template
from herdsman_trainer.sentencepiece_proto import append_pieces
from herdsman_trainer.tokenizer_merge import merge_tokenizer, tokens_per_character
from herdsman_trainer.tokenizers import TextTokenizer, load_tokenizer

ENGLISH_CHARACTERS = st.characters(max_codepoint=0xBF) | st.characters(min_codepoint=0x2000, max_codepoint=0x206F)
MIXED = sorted({*tiny.CHINESE, *"▁ é’\n9 river"})
BUILDERS = {"llama3": tiny.tiny_bpe_tokenizer, "chatml": tiny.tiny_chatml_tokenizer}


@pytest.fixture(scope="module")
def merged_bpe(chinese, tmp_path_factory) -> dict[str, tuple[TextTokenizer, TextTokenizer, Path]]:
    result = {}
    for name, build in BUILDERS.items():
        base, target = build(tmp_path_factory.mktemp("base")), tmp_path_factory.mktemp("target")
        merge_tokenizer(base, [chinese], target, pad=True)
        result[name] = load_tokenizer(base), load_tokenizer(target), target
    return result


def model_of(directory: Path, *pieces: str) -> bytes:
    """A SentencePiece model whose last pieces are the given ones."""
    return append_pieces((tiny.tiny_chinese_sentencepiece(directory) / "tokenizer.model").read_bytes(), pieces)


@pytest.mark.parametrize("name", BUILDERS)
@settings(max_examples=150, deadline=None)
@given(
    text=st.text() | st.text(alphabet=sorted({*tiny.CHINESE, *"▁ é’\n9 river"})) | st.text(alphabet="▁ \n河水每天é[")
)
def test_any_text_survives_the_merged_bpe(name, merged_bpe, text):
    _, after, _ = merged_bpe[name]
    ids = after.encode(text)
    assert after.decode(ids) == text
    assert not {after.bos_id, after.eos_id, after.pad_id} & set(ids)


@pytest.mark.parametrize("name", BUILDERS)
@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=ENGLISH_CHARACTERS))
def test_english_encodes_as_before(name, merged_bpe, text):
    before, after, _ = merged_bpe[name]
    assert after.encode(text) == before.encode(text)


@pytest.mark.parametrize("name", BUILDERS)
def test_chinese_takes_fewer_tokens_with_the_added_pieces(name, merged_bpe):
    before, after, _ = merged_bpe[name]
    old, characters = tokens_per_character(before, tiny.CHINESE.splitlines())
    new, _ = tokens_per_character(after, tiny.CHINESE.splitlines())
    assert old > 2.5 * characters
    assert new < 1.1 * characters


@pytest.mark.parametrize("name", BUILDERS)
def test_old_ids_stay_and_new_ones_follow_without_gaps(name, merged_bpe):
    before, after, target = merged_bpe[name]
    document = json.loads((target / "tokenizer.json").read_text())
    new = [token for token in document["added_tokens"] if token["id"] >= before.vocab_size]
    assert [token["id"] for token in new] == list(range(before.vocab_size, after.vocab_size))
    assert new[-1] == {**new[-1], "content": "[PAD]", "special": True, "id": after.pad_id}
    assert all(not token["special"] and not token["normalized"] for token in new[:-1])
    for token in (*tiny.CONTROL_TOKENS, *tiny.CHATML_TOKENS):
        assert before.control_id(token) == after.control_id(token)


@pytest.mark.parametrize("name", BUILDERS)
def test_transformers_gives_the_same_ids_for_the_merged_bpe(name, merged_bpe):
    transformers = pytest.importorskip("transformers")
    _, ours, target = merged_bpe[name]
    theirs = transformers.AutoTokenizer.from_pretrained(target)
    assert json.loads((target / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (len(theirs), theirs.eos_token_id, theirs.pad_token_id) == (ours.vocab_size, ours.eos_id, ours.pad_id)
    for text in [*tiny.ENGLISH.splitlines(), *tiny.CHINESE.splitlines(), "a 河水 b", "é’每天\n", "  1234 "]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text


@pytest.mark.parametrize(
    ("piece", "added"),
    [
        ("新词", "新词"),
        ("▁新词", "新词"),
        ("▁слово", " слово"),
        ("▁không", " không"),
        ("слово", "слово"),
        ("▁été", " été"),
        ("《书》", "《书》"),
        ("▁", None),
        ("▁▁", None),
        ("新▁词", None),
        ("新\u3000词", None),
        ("word", None),
        ("▁word", None),
        ("12", None),
        ("1949年", None),
        ("２０", None),
        ("é", None),
        ("ģé", None),
        ("Ġthe", None),
        ("▁½×", None),
        ("“", None),
        ("▁—", None),
        ("<0x41>", None),
        ("新\x00", None),
    ],
)
def test_which_pieces_become_added_tokens(tmp_path, piece, added):
    base = json.loads((tiny.tiny_bpe_tokenizer(tmp_path) / "tokenizer.json").read_text())
    merge = merge_bpe(base, [model_of(tmp_path), model_of(tmp_path, piece)])
    (first, second) = merge.sources
    contents = [token["content"] for token in merge.document["added_tokens"][len(base["added_tokens"]) + first.added :]]
    assert contents == ([] if added is None else [added])
    assert second.pieces == second.added + second.overlap + sum(second.skipped.values())


def test_a_piece_that_is_one_token_already_or_twice_the_same_text_is_overlap(tmp_path):
    base = json.loads((tiny.tiny_bpe_tokenizer(tmp_path, text="河河河 河河\n" * 20) / "tokenizer.json").read_text())
    merge = merge_bpe(base, [model_of(tmp_path, "河河", "新词", "▁新词")])
    contents = [token["content"] for token in merge.document["added_tokens"]]
    assert "河河" not in contents
    assert contents.count("新词") == 1


def test_an_added_token_inside_the_byte_level_alphabet_would_not_come_back(tmp_path):
    """Why é must not become an added token: it takes the id of the byte that é stands for."""
    directory = tiny.tiny_bpe_tokenizer(tmp_path)
    document = json.loads((directory / "tokenizer.json").read_text())
    byte = document["model"]["vocab"]["é"]
    document["added_tokens"].insert(0, {**document["added_tokens"][0], "id": byte, "content": "é", "special": False})
    (directory / "tokenizer.json").write_text(json.dumps(document))
    tok = load_tokenizer(directory)
    assert tok.encode("é") == [byte]
    assert tok.decode([byte]) == "\ufffd"


def test_every_digit_is_split_as_before(merged_bpe):
    before, after, _ = merged_bpe["llama3"]
    assert after.encode("1949") == before.encode("1949")
    assert after.encode("1949年")[:3] == before.encode("1949")


def test_the_document_of_the_base_is_left_as_it_was(tmp_path, chinese):
    base = json.loads((tiny.tiny_bpe_tokenizer(tmp_path) / "tokenizer.json").read_text())
    copy = json.loads(json.dumps(base))
    merge_bpe(base, [chinese.read_bytes()], pad=True)
    assert base == copy


def test_a_chat_template_of_the_base_travels_along(tmp_path, chinese):
    base = tiny.tiny_chatml_tokenizer(tmp_path / "base")
    (base / "chat_template.jinja").write_text(chat_template("chatml"))
    target = tmp_path / "target"
    target.mkdir()
    merge_tokenizer(base, [chinese], target)
    assert (target / "chat_template.jinja").read_text() == chat_template("chatml")


def test_added_tokens_of_the_chinese_model_hold_no_digit_and_no_whitespace(merged_bpe):
    before, _, target = merged_bpe["llama3"]
    document = json.loads((target / "tokenizer.json").read_text())
    new = [token["content"] for token in document["added_tokens"] if token["id"] >= before.vocab_size][:-1]
    assert len(new) > 50
    assert not any(unicodedata.category(character) in ("Nd", "Cc") for text in new for character in text)
    assert not any(character.isspace() or character == "▁" for text in new for character in text)
