"""Merging vocabularies: old ids stay, text survives, and other libraries read what is written."""

import hashlib
import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import strategies as st

import tiny
from herdsman.api.job_config import MANIFEST_NAME, ArtifactManifest, TokenizerMergeConfig
from herdsman_trainer.errors import BadInput
from herdsman_trainer.merge_ranks import ranked_merges
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.sentencepiece_merge import merge_sentencepiece
from herdsman_trainer.sentencepiece_proto import Piece, PieceType, append_pieces, as_control, read_pieces
from herdsman_trainer.steps import tokenizer_merge as step
from herdsman_trainer.tokenizer_merge import merge_tokenizer, tokens_per_character
from herdsman_trainer.tokenizers import load_tokenizer
from run_configs import owner, source, workspace

ENGLISH_CHARACTERS = st.characters(max_codepoint=0xBF) | st.characters(min_codepoint=0x2000, max_codepoint=0x206F)
MIXED = sorted({*tiny.CHINESE, *"▁ é’\n9 river"})
BUILDERS = {"llama3": tiny.tiny_bpe_tokenizer, "chatml": tiny.tiny_chatml_tokenizer}


@pytest.fixture(scope="module")
def merged(llama, chinese, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("merged")
    merge_tokenizer(llama, [chinese], directory, pad=True)
    return directory


def model_of(directory: Path, *pieces: str) -> bytes:
    """A SentencePiece model whose last pieces are the given ones."""
    return append_pieces((tiny.tiny_chinese_sentencepiece(directory) / "tokenizer.model").read_bytes(), pieces)


# SentencePiece


def test_pieces_are_appended_in_file_order_with_score_zero_and_pad_last(llama, chinese, merged):
    old = read_pieces((llama / "tokenizer.model").read_bytes())
    new = read_pieces((merged / "tokenizer.model").read_bytes())
    known = {piece.text for piece in old}
    expected = [piece.text for piece in read_pieces(chinese.read_bytes()) if piece.text not in known]
    assert new[: len(old)] == old
    assert [piece.text for piece in new[len(old) :]] == [*expected, "[PAD]"]
    assert {(piece.score, piece.type) for piece in new[len(old) :]} == {(0.0, PieceType.NORMAL)}


def test_everything_but_the_pieces_keeps_its_bytes(llama, chinese):
    base = (llama / "tokenizer.model").read_bytes()
    merge = merge_sentencepiece(base, [chinese.read_bytes()])
    at = next(index for index, (a, b) in enumerate(zip(base, merge.model, strict=False)) if a != b)
    assert merge.model.startswith(base[:at])
    assert merge.model.endswith(base[at:])


def test_several_models_are_merged_in_order(llama, chinese, tmp_path):
    base = (llama / "tokenizer.model").read_bytes()
    second = model_of(tmp_path, "新词", "河水")
    merge = merge_sentencepiece(base, [chinese.read_bytes(), second])
    one_by_one = merge_sentencepiece(merge_sentencepiece(base, [chinese.read_bytes()]).model, [second])
    assert merge.model == one_by_one.model
    first_counts, second_counts = merge.sources
    assert first_counts.added + first_counts.overlap == first_counts.pieces
    assert (second_counts.added, second_counts.overlap) == (2, second_counts.pieces - 2)
    assert [piece.text for piece in read_pieces(merge.model)[-2:]] == ["新词", "河水"]


def test_merging_a_tokenizer_with_itself_changes_nothing(llama):
    base = (llama / "tokenizer.model").read_bytes()
    assert merge_sentencepiece(base, [base]).model == base


def test_control_pieces_of_a_source_are_left_out(llama, chinese):
    model = chinese.read_bytes()
    texts = [piece.text for piece in read_pieces(model)]
    control = as_control(model, {texts.index("每天")})
    (counts,) = merge_sentencepiece((llama / "tokenizer.model").read_bytes(), [control]).sources
    assert counts.skipped == {"control": 1}
    assert counts.added + counts.overlap + 1 == counts.pieces


def test_chinese_takes_fewer_tokens_and_english_the_same(llama, merged):
    before, after = load_tokenizer(llama), load_tokenizer(merged)
    for line in tiny.ENGLISH.splitlines():
        assert after.encode(line) == before.encode(line)
    old, characters = tokens_per_character(before, tiny.CHINESE.splitlines())
    new, _ = tokens_per_character(after, tiny.CHINESE.splitlines())
    assert old > 2.5 * characters
    assert new < 1.2 * characters


def test_characters_are_counted_without_line_ends(merged):
    tok = load_tokenizer(merged)
    tokens, characters = tokens_per_character(tok, ["河水\n河水\r\n", ""])
    assert (tokens, characters) == (len(tok.encode("河水\n河水\r\n")), 4)


@pytest.mark.parametrize("pad", [False, True])
def test_the_configuration_files_carry_the_published_values(llama, chinese, tmp_path, pad):
    merge_tokenizer(llama, [chinese], tmp_path, pad)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    expected = {"add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False}
    expected |= {"model_max_length": 1000000000000000019884624838656, "pad_token": "[PAD]" if pad else None}
    expected |= {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    assert config.items() >= expected.items()
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | ({"pad_token": "[PAD]"} if pad else {})
    assert json.loads((tmp_path / "special_tokens_map.json").read_text()) == named


def test_transformers_reads_the_merged_directory_nearly_as_sentencepiece_does(llama, merged):
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(merged), load_tokenizer(merged)
    assert (len(theirs), theirs.pad_token_id) == (ours.vocab_size, ours.pad_id)
    assert theirs("The sea")["input_ids"] == [ours.bos_id, *ours.encode("The sea")]
    texts = [*tiny.ENGLISH.splitlines(), "", "  leading", "two  spaces", " trailing ", "😀", "new\n\nlines\t"]
    for text in texts:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text), text
        assert theirs.decode(ours.encode(text)) == text
    lines = tiny.CHINESE.splitlines()
    same = sum(theirs(line, add_special_tokens=False)["input_ids"] == ours.encode(line) for line in lines)
    assert same >= 0.9 * len(lines)


def test_a_padding_piece_of_the_base_is_kept(llama, chinese, tmp_path):
    (tmp_path / "base").mkdir()
    model = append_pieces((llama / "tokenizer.model").read_bytes(), ["<pad>"])
    (tmp_path / "base" / "tokenizer.model").write_bytes(model)
    merge_tokenizer(tmp_path / "base", [chinese], tmp_path)
    assert load_tokenizer(tmp_path).pad_id == 400
    assert json.loads((tmp_path / "special_tokens_map.json").read_text())["pad_token"] == "<pad>"


# Ranks


def pieces_of(*texts: str) -> list[Piece]:
    return [Piece(text, 0.0, PieceType.NORMAL) for text in texts]


def test_of_two_merges_that_compete_the_left_one_ranks_higher():
    """Whatever the order in the file: b c ranks behind a b, and c d behind both."""
    singles = "abcd"
    for pairs in (["ab", "bc", "cd"], ["cd", "bc", "ab"], ["bc", "ab", "cd"]):
        assert ranked_merges(pieces_of(*singles, *pairs)) == [("a", "b"), ("b", "c"), ("c", "d")]


def test_ranks_of_different_scores_follow_the_scores():
    pieces = [*pieces_of("a", "b", "c"), Piece("bc", -1.0, PieceType.NORMAL), Piece("ab", -2.0, PieceType.NORMAL)]
    assert ranked_merges(pieces) == [("b", "c"), ("a", "b")]


def test_a_piece_has_a_merge_for_each_of_its_splits():
    assert set(ranked_merges(pieces_of("a", "b", "ab", "ba", "aba"))) == {
        ("a", "b"),
        ("b", "a"),
        ("ab", "a"),
        ("a", "ba"),
    }


def test_ranks_are_the_same_in_every_run(merged):
    pieces = read_pieces((merged / "tokenizer.model").read_bytes())
    assert ranked_merges(pieces) == ranked_merges(list(pieces))


# Bad input


def test_a_base_without_the_three_control_pieces_is_refused(tmp_path, chinese):
    model = tiny.tiny_sentencepiece(tmp_path / "base") / "tokenizer.model"
    model.write_bytes(model.read_bytes().replace(b"\x0a\x03<s>", b"\x0a\x03[s]"))
    with pytest.raises(BadInput, match=r"no piece <s>") as refused:
        merge_tokenizer(tmp_path / "base", [chinese], tmp_path)
    assert refused.value.file == str(model)


def test_a_unigram_base_is_refused(tmp_path, chinese):
    with pytest.raises(BadInput, match="not a BPE SentencePiece model") as refused:
        merge_tokenizer(chinese.parent, [chinese], tmp_path)
    assert refused.value.file == str(chinese)


def test_a_base_with_tokens_added_behind_its_pieces_is_refused(tmp_path, chinese):
    base = tiny.tiny_sentencepiece(tmp_path / "base")
    (base / "added_tokens.json").write_text('{"[PAD]": 400}')
    with pytest.raises(BadInput, match="its configuration adds 1 tokens"):
        merge_tokenizer(base, [chinese], tmp_path)


def test_a_base_that_puts_a_space_before_every_segment_is_refused(tmp_path, chinese):
    base = tiny.tiny_bpe_tokenizer(tmp_path / "base")
    text = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").write_text(text.replace('"add_prefix_space": false', '"add_prefix_space": true'))
    with pytest.raises(BadInput, match="add_prefix_space") as refused:
        merge_tokenizer(base, [chinese], tmp_path)
    assert refused.value.file == str(base / "tokenizer.json")


def test_a_base_that_is_a_file_and_a_source_that_is_a_directory_are_refused(tmp_path, llama, chinese):
    with pytest.raises(BadInput, match="is a file"):
        merge_tokenizer(llama / "tokenizer.model", [chinese], tmp_path)
    with pytest.raises(BadInput, match="is a directory") as refused:
        merge_tokenizer(llama, [chinese.parent], tmp_path)
    assert "tokenizer.model" in refused.value.hint


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a\x05ab"], ids=["empty", "text", "cut"])
def test_a_source_that_is_no_sentencepiece_model_is_refused(tmp_path, llama, content):
    bad = tmp_path / "bad.model"
    bad.write_bytes(content)
    with pytest.raises(BadInput, match="not a readable SentencePiece model") as refused:
        merge_tokenizer(llama, [bad], tmp_path)
    assert refused.value.file == str(bad)


# The step


def config_of(root: Path, base: Path, sources: list[Path], **more: object) -> TokenizerMergeConfig:
    return TokenizerMergeConfig(
        owner=owner(kind="TokenizerMerge"),
        attempt=1,
        workspace=workspace(root),
        base=source(base, field="spec.base.volume"),
        sources=[source(path, field=f"spec.sources[{at}].volume") for at, path in enumerate(sources)],
        **more,
    )


@pytest.mark.parametrize(("build", "file"), [("sentencepiece", "tokenizer.model"), ("llama3", "tokenizer.json")])
def test_the_step_publishes_a_tokenizer_and_its_figures(tmp_path, chinese, build, file):
    builder = {"sentencepiece": tiny.tiny_sentencepiece, "llama3": tiny.tiny_bpe_tokenizer}[build]
    base = builder(tmp_path / "base")
    sample = tmp_path / "sample.txt"
    sample.write_text(tiny.CHINESE, encoding="utf-8")
    config = config_of(
        tmp_path, base, [chinese], pad_token=True, sample=source(sample, field="spec.sample.volume", root=tmp_path)
    )
    artifact = step.run(config, RunContext(config))
    directory = tmp_path / "work" / "artifact"
    tok = load_tokenizer(directory)
    assert (artifact.kind, artifact.vocab_size, artifact.tokenizer_digest) == ("tokenizer", tok.vocab_size, tok.digest)
    manifest = ArtifactManifest.model_validate_json((directory / MANIFEST_NAME).read_bytes())
    assert file in manifest.files
    assert manifest.inputs == {
        "spec.base.volume": load_tokenizer(base).digest,
        "spec.sources[0].volume": hashlib.sha256(chinese.read_bytes()).hexdigest(),
    }
    report = {metric.name: float(metric.value) for metric in manifest.report}
    characters = len(tiny.CHINESE.replace("\n", ""))
    tokens = sum(map(len, tok.encode_batch(tiny.CHINESE.splitlines())))
    assert report["sample_characters"] == characters
    assert report["tokens_per_character_after"] == pytest.approx(tokens / characters, abs=1e-4)
    assert report["tokens_per_character_before"] > 2 * report["tokens_per_character_after"]
    assert report["pieces_after"] == report["pieces_before"] + report["source_1_pieces_added"] + 1


def test_the_step_is_content_without_a_sample(tmp_path, llama, chinese):
    config = config_of(tmp_path, llama, [chinese, chinese])
    artifact = step.run(config, RunContext(config))
    manifest = ArtifactManifest.model_validate_json((tmp_path / "work" / "artifact" / MANIFEST_NAME).read_bytes())
    report = {metric.name: metric.value for metric in manifest.report}
    assert artifact.vocab_size == load_tokenizer(tmp_path / "work" / "artifact").vocab_size
    assert report["source_2_pieces_added"] == "0"
    assert "sample_characters" not in report


def test_the_step_publishes_the_same_digest_twice(tmp_path, llama, chinese):
    digests = set()
    for name in ("one", "two"):
        config = config_of(tmp_path / name, llama, [chinese])
        digests.add(step.run(config, RunContext(config)).digest)
    assert len(digests) == 1


def test_the_step_names_the_field_of_a_missing_source(tmp_path, llama):
    config = config_of(tmp_path, llama, [tmp_path / "missing.model"])
    with pytest.raises(BadInput, match=r"spec\.sources\[0\]\.volume"):
        step.run(config, RunContext(config))


def test_the_merged_model_is_one_that_sentencepiece_loads(merged):
    processor = sentencepiece.SentencePieceProcessor(str(merged / "tokenizer.model"))
    assert processor.get_piece_size() == load_tokenizer(merged).vocab_size
