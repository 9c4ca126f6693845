"""Tokenizers: text survives, control tokens stay out of reach, and a wrong file is named with its remedy."""

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from herdsman_trainer.errors import BadInput
from herdsman_trainer.sentencepiece_flat import flat_encoder
from herdsman_trainer.sentencepiece_proto import PieceType, append_pieces, as_control, read_pieces
from herdsman_trainer.tokenizer_files import TOKENIZER_FILES, canonical_digest
from herdsman_trainer.tokenizers import TextTokenizer, copy_tokenizer, load_tokenizer

CONTROL_STRINGS = ["<s>", "</s>", "<unk>", "[PAD]", "<0x41>", *tiny.CONTROL_TOKENS, *tiny.CHATML_TOKENS]
BUILDERS = {
    "sentencepiece": tiny.tiny_sentencepiece,
    "llama3": tiny.tiny_bpe_tokenizer,
    "chatml": tiny.tiny_chatml_tokenizer,
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    directories = {name: build(root / name) for name, build in BUILDERS.items()}
    directories["padded"] = padded(root / "padded")
    return directories


@pytest.fixture(scope="module")
def loaded(directories: dict[str, Path]) -> dict[str, TextTokenizer]:
    return {name: load_tokenizer(directory) for name, directory in directories.items()}


def padded(directory: Path, pad: str = "[PAD]") -> Path:
    """A tokenizer whose padding piece is NORMAL and reachable from text: `[`, `P`, ... merge to it step by step."""
    tiny.tiny_sentencepiece(directory)
    path = directory / "tokenizer.model"
    known = {piece.text for piece in read_pieces(path.read_bytes())}
    wanted = [*sorted({*pad}), *(pad[:end] for end in range(2, len(pad) + 1))]
    path.write_bytes(append_pieces(path.read_bytes(), [text for text in wanted if text not in known]))
    return directory


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", [*BUILDERS, "padded"])
@settings(max_examples=60, deadline=None)
@given(text=st.text() | st.lists(st.sampled_from([*CONTROL_STRINGS, " ", "a", "的"])).map("".join))
def test_text_survives_and_never_becomes_a_control_id(name, loaded, text):
    tok = loaded[name]
    ids = tok.encode(text)
    controls = {tok.bos_id, tok.eos_id, tok.pad_id, *(tok.control_id(each) for each in CONTROL_STRINGS)}
    assert not controls & set(ids)
    assert all(0 <= index < tok.vocab_size for index in ids)
    assert tok.decode(ids) == (text.replace("▁", " ") if name in ("sentencepiece", "padded") else text)


@pytest.mark.parametrize("name", [*BUILDERS, "padded"])
def test_a_batch_is_its_texts_one_by_one(name, loaded):
    texts = ["", "The river 12345", " the  sea\n", *CONTROL_STRINGS, "河水", "\ud800 half a pair"]
    assert loaded[name].encode_batch(texts) == [loaded[name].encode(text) for text in texts]


UTF8 = st.text(st.characters(codec="utf-8")) | st.sampled_from(["", *CONTROL_STRINGS, "河水", " a "])


@pytest.mark.parametrize("name", [*BUILDERS, "padded"])
@settings(max_examples=30, deadline=None)
@given(texts=st.lists(UTF8, max_size=12))
def test_all_ids_in_one_array_are_those_of_the_texts_one_by_one(name, loaded, texts):
    ids, lengths = loaded[name].encode_flat([text.encode() for text in texts])
    one_by_one = [loaded[name].encode(text) for text in texts]
    assert lengths.tolist() == [len(each) for each in one_by_one]
    assert ids.tolist() == [index for each in one_by_one for index in each]


def test_sentencepiece_is_read_by_its_promised_arrays_where_its_buffers_are_others(directories, monkeypatch):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directories["sentencepiece"] / "tokenizer.model"))
    texts = [b"The river", b"", b"<s> a", "河".encode()]
    fast, expected = flat_encoder(processor), [part.tolist() for part in flat_encoder(processor)(texts)]
    assert type(fast).__name__ == "_Buffers"

    class Other:
        """Another release, whose insides are not those we know."""

        bos_id, is_control, encode = processor.bos_id, processor.is_control, processor.encode

        class _processor:  # noqa: N801 - the library's name
            @staticmethod
            def _EncodeAsBufferBatch(_texts):  # noqa: N802
                return []

    slow = flat_encoder(Other())
    assert type(slow).__name__ == "_Arrays"
    assert [part.tolist() for part in slow(texts)] == expected
    monkeypatch.setattr(fast, "_bos", 5)  # a piece that text becomes
    assert [part.tolist() for part in fast(texts)] == expected
    assert [part.tolist() for part in fast([])] == [[], []]


@pytest.mark.parametrize("name", [*BUILDERS, "padded"])
def test_a_tokenizer_reaches_another_process_as_it_is(name, loaded):
    sent = pickle.loads(pickle.dumps(loaded[name]))
    text = f"The river {' '.join(CONTROL_STRINGS)} 河水"
    assert (sent.digest, sent.vocab_size, sent.encode(text)) == (
        loaded[name].digest,
        loaded[name].vocab_size,
        loaded[name].encode(text),
    )


@pytest.mark.parametrize("name", [*BUILDERS, "padded"])
def test_control_ids_are_skipped_in_decoding(name, loaded):
    tok = loaded[name]
    controls = [index for index in (tok.bos_id, tok.eos_id, tok.pad_id) if index is not None]
    assert tok.decode([*controls, *tok.encode("The sea"), *controls]) == "The sea"


@pytest.mark.parametrize("name", BUILDERS)
def test_a_lone_surrogate_becomes_the_replacement_character(name, loaded):
    assert loaded[name].decode(loaded[name].encode("a\ud800b \ud83d\ude00")) == "a\ufffdb 😀"


def test_sentencepiece_ids_are_those_of_the_library(directories, loaded):
    oracle = sentencepiece.SentencePieceProcessor(str(directories["sentencepiece"] / "tokenizer.model"))
    for text in [*tiny.ENGLISH.splitlines(), *tiny.CHINESE.splitlines(), "  two  spaces ", "<s>"]:
        assert loaded["sentencepiece"].encode(text) == oracle.encode(text)


def test_the_normal_padding_piece_is_reachable_in_the_file_and_not_in_the_tokenizer(directories, loaded):
    oracle = sentencepiece.SentencePieceProcessor(str(directories["padded"] / "tokenizer.model"))
    pad = oracle.piece_to_id("[PAD]")
    assert pad in oracle.encode("x[PAD]y")
    assert loaded["padded"].pad_id == loaded["padded"].control_id("[PAD]") == pad
    assert pad not in loaded["padded"].encode("x[PAD]y")


def test_names_in_the_configuration_decide_over_the_model(tmp_path):
    directory = tiny.tiny_sentencepiece(tmp_path)
    (directory / "tokenizer_config.json").write_text('{"bos_token": {"content": "</s>"}, "pad_token": null}')
    (directory / "special_tokens_map.json").write_text('{"pad_token": "<unk>", "eos_token": "<s>"}')
    tok = load_tokenizer(directory)
    assert (tok.bos_id, tok.eos_id, tok.pad_id) == (2, 1, 0)


def test_tokens_added_by_the_configuration_are_control_ids_behind_the_pieces(tmp_path):
    directory = tiny.tiny_sentencepiece(tmp_path)
    (directory / "added_tokens.json").write_text('{"[PAD]": 400, "<s>": 1}')
    (directory / "special_tokens_map.json").write_text('{"pad_token": "[PAD]"}')
    tok = load_tokenizer(directory)
    assert (tok.vocab_size, tok.pad_id, tok.control_id("[PAD]")) == (401, 400, 400)
    assert tok.decode([400, *tok.encode("sea"), 400]) == "sea"


def test_special_tokens_of_a_bpe_are_control_tokens_though_the_file_calls_them_ordinary(tmp_path):
    directory = tiny.tiny_bpe_tokenizer(tmp_path)
    document = json.loads((directory / "tokenizer.json").read_text())
    for token in document["added_tokens"]:
        token["special"] = False
    (directory / "tokenizer.json").write_text(json.dumps(document))
    tok = load_tokenizer(directory)
    assert tok.eos_id == tok.control_id("<|end_of_text|>")
    assert tok.eos_id not in tok.encode("<|end_of_text|>")


def test_a_control_string_in_the_bpe_vocabulary_is_spelled_out(tmp_path):
    """With ignore_merges a whole word of the vocabulary is taken as it is, past the added tokens."""
    directory = tiny.tiny_bpe_tokenizer(tmp_path)
    document = json.loads((directory / "tokenizer.json").read_text())
    document["added_tokens"][0]["content"] = "stop"
    document["model"]["vocab"]["stop"] = document["added_tokens"][0]["id"]
    (directory / "tokenizer.json").write_text(json.dumps(document))
    edit_json(directory / "tokenizer_config.json", eos_token="stop")
    tok = load_tokenizer(directory)
    assert tok.eos_id not in tok.encode("stop stop\nstop")
    assert tok.decode(tok.encode("stop stop\nstop")) == "stop stop\nstop"
    assert tok.encode_batch(["stop", "go"]) == [tok.encode("stop"), tok.encode("go")]


def test_truncation_and_padding_in_the_file_are_switched_off(tmp_path):
    directory = tiny.tiny_bpe_tokenizer(tmp_path)
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    before = load_tokenizer(directory).encode("The river rises")
    edit_json(directory / "tokenizer.json", truncation=truncation, padding=padding)
    assert load_tokenizer(directory).encode("The river rises") == before


def test_digests_are_those_of_the_contract(directories, loaded, tmp_path):
    model = (directories["sentencepiece"] / "tokenizer.model").read_bytes()
    assert loaded["sentencepiece"].digest == hashlib.sha256(model).hexdigest()
    document = json.loads((directories["llama3"] / "tokenizer.json").read_text())
    relaid = tmp_path / "tokenizer.json"
    relaid.write_text(json.dumps(dict(reversed(document.items())), indent=4))
    assert loaded["llama3"].digest == canonical_digest(relaid)
    assert loaded["llama3"].digest != loaded["chatml"].digest


def test_tokenizer_model_wins_over_tokenizer_json(tmp_path):
    tiny.tiny_bpe_tokenizer(tmp_path)
    tiny.tiny_sentencepiece(tmp_path)
    assert load_tokenizer(tmp_path).control_id("<s>") == 1


def test_copying_takes_every_tokenizer_file_byte_for_byte_and_nothing_else(tmp_path):
    source = tiny.tiny_bpe_tokenizer(tmp_path / "source")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "config.json").write_text("{}")
    copy_tokenizer(source, tmp_path / "target")
    copied = {path.name: path.read_bytes() for path in (tmp_path / "target").iterdir()}
    assert copied == {name: (source / name).read_bytes() for name in TOKENIZER_FILES if (source / name).is_file()}
    assert set(copied) == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
    copy_tokenizer(source, source)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"neither tokenizer\.model nor tokenizer\.json") as refused:
        load_tokenizer(tmp_path)
    assert refused.value.file == str(tmp_path)
    with pytest.raises(BadInput, match="neither"):
        copy_tokenizer(tmp_path, tmp_path / "target")


@pytest.mark.parametrize(
    ("why", "damage"),
    [
        ("it is empty", lambda model: b""),
        ("cut short", lambda model: model[: len(model) // 2]),
        ("cut short", lambda model: model[: _end_of_pieces(model)]),
        ("", lambda model: b"version https://git-lfs.github.com/spec/v1\n"),
        ("", lambda model: b"<!doctype html><html>Not found</html>"),
        ("", lambda model: b"IQ== 0\nIg== 1\nIw== 2\n"),
    ],
    ids=["empty", "half", "cut between fields", "git lfs pointer", "web page", "tiktoken file"],
)
def test_a_file_that_is_no_sentencepiece_model_is_refused(tmp_path, why, damage):
    path = tiny.tiny_sentencepiece(tmp_path) / "tokenizer.model"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match="not a readable SentencePiece model") as refused:
        load_tokenizer(tmp_path)
    assert why in refused.value.message
    assert refused.value.file == str(path)
    assert "SHA-256" in refused.value.hint


def _end_of_pieces(model: bytes) -> int:
    return append_pieces(model, ["mark"]).index(b"\x0a\x04mark") - 2


@pytest.mark.parametrize(
    ("said", "content"),
    [
        ("not a readable tokenizer.json", "{"),
        ("not a readable tokenizer.json", "[]"),
        ("not a readable tokenizer.json", '{"version": "1.0"}'),
    ],
)
def test_a_file_that_is_no_tokenizer_json_is_refused(tmp_path, said, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BadInput, match=said) as refused:
        load_tokenizer(tmp_path)
    assert refused.value.file == str(tmp_path / "tokenizer.json")


def test_a_tokenizer_json_that_is_not_byte_level_is_refused_with_the_remedy(tmp_path):
    directory = tiny.tiny_bpe_tokenizer(tmp_path)
    edit_json(directory / "tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    with pytest.raises(BadInput, match="not a byte-level BPE") as refused:
        load_tokenizer(directory)
    assert "tokenizer.model" in refused.value.hint


def test_added_tokens_with_a_gap_before_them_are_refused(tmp_path):
    directory = tiny.tiny_bpe_tokenizer(tmp_path)
    document = json.loads((directory / "tokenizer.json").read_text())
    document["added_tokens"][-1]["id"] += 5
    (directory / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(BadInput, match=r"has the id 424 in the file, but .* gives it 419"):
        load_tokenizer(directory)


def test_a_configuration_that_is_no_json_object_is_refused(tmp_path):
    directory = tiny.tiny_sentencepiece(tmp_path)
    (directory / "tokenizer_config.json").write_text("[]")
    with pytest.raises(BadInput, match="holds no JSON object") as refused:
        load_tokenizer(directory)
    assert refused.value.file == str(directory / "tokenizer_config.json")


def test_a_tokenizer_without_an_end_of_sequence_token_is_refused(tmp_path):
    directory = tiny.tiny_bpe_tokenizer(tmp_path)
    (directory / "tokenizer_config.json").unlink()
    (directory / "special_tokens_map.json").unlink()
    with pytest.raises(BadInput, match="No end-of-sequence token") as refused:
        load_tokenizer(directory)
    assert '"eos_token"' in refused.value.hint


def test_marking_pieces_as_control_changes_nothing_else(directories):
    model = (directories["padded"] / "tokenizer.model").read_bytes()
    before, after = read_pieces(model), read_pieces(as_control(model, {300, len(read_pieces(model)) - 1}))
    changed = [index for index, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert changed == [300, len(before) - 1]
    assert all(after[index] == before[index]._replace(type=PieceType.CONTROL) for index in changed)
    assert as_control(model, set()) == model


def test_a_tiny_llama_has_as_many_rows_as_its_tokenizer_has_ids(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    directory = tiny.tiny_llama(tmp_path / "model", tokenizer=tiny.tiny_bpe_tokenizer(tmp_path / "tok"), tied=True)
    with safetensors.safe_open(directory / "model.safetensors", "pt") as tensors:
        names = set(tensors.keys())
        rows = tensors.get_slice("model.embed_tokens.weight").get_shape()[0]
    assert rows == load_tokenizer(directory).vocab_size == 420
    assert "lm_head.weight" not in names
