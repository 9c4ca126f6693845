"""The published vocabularies, encodings and prompts, reproduced to the byte from the real tokenizers."""

import hashlib
import json
from pathlib import Path

import pytest

from herdsman_trainer.benchmarks.choice_scores import letters_of
from herdsman_trainer.corpora import find_text_files
from herdsman_trainer.data.datasets import dataset_at
from herdsman_trainer.merge_ranks import ranked_merges
from herdsman_trainer.prompts import TEMPLATES, Message
from herdsman_trainer.sentencepiece_merge import merge_sentencepiece
from herdsman_trainer.sentencepiece_proto import read_pieces
from herdsman_trainer.token_cache import build_or_open
from herdsman_trainer.token_streams import CorpusOptions
from herdsman_trainer.tokenizer_merge import merge_tokenizer, tokens_per_character
from herdsman_trainer.tokenizers import TextTokenizer, load_tokenizer

pytestmark = pytest.mark.real_data

POEM = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"
ENGLISH = "The primary use of LLaMA is research on large language models, including"
AI = "人工智能是计算机科学、心理学、哲学等学科融合的交叉学科。"
QUESTION, ANSWER = "为什么要减少污染，保护环境？", "因为环境很重要。"


@pytest.fixture(scope="module")
def llama(real_data, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("llama")
    (directory / "tokenizer.model").symlink_to(real_data / "tokenizer.model")
    return directory


@pytest.fixture(scope="module")
def merged(real_data, llama, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("merged")
    merge_tokenizer(llama, [real_data / "chinese_sp.model"], directory)
    return directory


@pytest.fixture(scope="module")
def padded(real_data, llama, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("padded")
    merge_tokenizer(llama, [real_data / "chinese_sp.model"], directory, pad=True)
    return directory


def ids(text: str) -> list[int]:
    return [int(each) for each in text.split()]


@pytest.mark.parametrize(
    ("pad", "pieces", "sha256"),
    [
        (False, 49953, "e2676d4ca29ca1750f6ff203328d73b189321dc5776ceede037cbd36541d70c0"),
        (True, 49954, "2d967e855b1213a439df6c8ce2791f869c84b4f3b6cfacf22b86440b8192a2f8"),
    ],
)
def test_the_merged_model_is_the_published_file(real_data, pad, pieces, sha256):
    base, chinese = ((real_data / name).read_bytes() for name in ("tokenizer.model", "chinese_sp.model"))
    merge = merge_sentencepiece(base, [chinese], pad)
    assert hashlib.sha256(merge.model).hexdigest() == sha256
    assert len(read_pieces(merge.model)) == pieces
    (counts,) = merge.sources
    assert (counts.pieces, counts.added, counts.overlap, counts.skipped) == (20000, 17953, 2047, {})


def test_the_written_directories_load_with_the_published_digests(merged, padded):
    plain, alpaca = load_tokenizer(merged), load_tokenizer(padded)
    assert (plain.vocab_size, plain.bos_id, plain.eos_id, plain.pad_id) == (49953, 1, 2, None)
    assert (alpaca.vocab_size, alpaca.bos_id, alpaca.eos_id, alpaca.pad_id) == (49954, 1, 2, 49953)
    assert plain.digest.startswith("e2676d4c")
    assert alpaca.digest.startswith("2d967e85")
    assert 49953 not in alpaca.encode("a[PAD]b [PAD]")


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        (POEM, 37, 21),
        (ENGLISH, 15, 15),
        (f"{POEM}\n{ENGLISH}", 53, 37),
        (AI, 35, 16),
        (QUESTION, 29, 8),
        ("你好", 3, 1),
    ],
)
def test_the_numbers_of_tokens_are_the_published_ones(llama, merged, text, before, after):
    assert len(load_tokenizer(llama).encode(text)) == before
    assert len(load_tokenizer(merged).encode(text)) == after


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            POEM,
            "39226 30325 33282 30329 32555 30214 37693 30752 30581 31151 30267 33182 35243 40097 30895 30214 31100 "
            "30429 36966 32261 30267",
        ),
        (AI, "29871 43819 30392 33482 32599 30330 36752 30330 34802 31184 34028 35258 30210 38879 34028 30267"),
        ("白日依山尽", "39226 30325 33282 30329 32555"),
        ("黄河入海流", "36982 30828 30752 30581 31151"),
        ("", ""),
    ],
)
def test_the_merged_tokenizer_gives_the_published_ids(merged, text, expected):
    tok = load_tokenizer(merged)
    assert tok.encode(text) == ids(expected)
    assert tok.decode(ids(expected)) == text


def test_a_document_takes_2_3_times_fewer_tokens(real_data, llama, merged):
    text = (real_data / "doc.txt").read_text(encoding="utf-8")
    assert len(load_tokenizer(llama).encode(text)) == 3108
    assert len(load_tokenizer(merged).encode(text)) == 1800
    assert tokens_per_character(load_tokenizer(merged), text.splitlines()) == (1791, 2135)


def test_the_alpaca_prompt_gives_the_published_ids(padded):
    tok, template = load_tokenizer(padded), TEMPLATES["alpaca"]
    source = ids(
        "1 13866 338 385 15278 393 16612 263 3414 29889 14350 263 2933 393 7128 2486 1614 2167 278 2009 29889 13 13 "
        "2277 29937 2799 4080 29901 13 37992 32800 34377 30214 32445 32291 30882 13 13 2277 29937 13291 29901 29871"
    )
    assert template.source_ids(tok, QUESTION) == source
    assert template.chat_ids(tok, [Message("user", QUESTION)]) == source
    assert template.target_ids(tok, ANSWER) == ids("34205 32291 36624 30267 2")


def test_the_llama_2_prompt_has_the_published_ids_outside_its_chinese_words(llama, padded):
    """The second generation's own vocabulary is not at hand; LLaMA's has the same ids for all but Chinese words."""
    tok, template = load_tokenizer(llama), TEMPLATES["llama-2"]
    source = template.source_ids(tok, QUESTION)
    end = len(source) - len(tok.encode("[/INST]"))
    assert source[:15] == ids("1 518 25580 29962 3532 14816 29903 6778 13 3492 526 263 8444 20255 29889")
    assert ids("30267 13 29966 829 14816 29903 6778 13 13") in [source[at : at + 9] for at in range(15, end)]
    assert source[end:] == ids("518 29914 25580 29962")
    prompt = f"[INST] <<SYS>>\nYou are a helpful assistant. 你是一个乐于助人的助手。\n<</SYS>>\n\n{QUESTION} [/INST]"
    assert tok.decode(source) == prompt
    assert template.target_ids(load_tokenizer(padded), ANSWER) == ids("34205 32291 36624 30267 2")


def test_control_strings_in_real_text_never_become_control_ids(padded):
    tok = load_tokenizer(padded)
    encoded = tok.encode("含<s>标记</s>[PAD]<unk>")
    assert not {0, 1, 2, 49953} & set(encoded)
    assert tok.decode(encoded) == "含<s>标记</s>[PAD]<unk>"


def test_tokenizer_json_agrees_with_sentencepiece_on_99_of_100_tokens(real_data, merged):
    """The figures of docs/decisions/0003: identical lines, and tokens at identical places."""
    transformers = pytest.importorskip("transformers")
    ours, theirs = load_tokenizer(merged), transformers.AutoTokenizer.from_pretrained(merged)
    records = json.loads((real_data / "ruozhiba_qa2449_gpt4o.json").read_text(encoding="utf-8"))
    texts = [record[key] for record in records for key in ("instruction", "output")]
    lines, tokens = _agreement(ours, theirs, texts)
    assert lines > 0.80
    assert tokens > 0.99
    lines, tokens = _agreement(ours, theirs, (real_data / "doc.txt").read_text(encoding="utf-8").splitlines())
    assert lines >= 0.70
    assert tokens > 0.99


def _agreement(ours: TextTokenizer, theirs, texts: list[str]) -> tuple[float, float]:
    expected = ours.encode_batch(texts)
    given = theirs(texts, add_special_tokens=False)["input_ids"]
    same = sum(a == b for a, b in zip(expected, given, strict=True))
    lengths = [len(theirs.convert_ids_to_tokens([index])[0].encode()) for index in range(ours.vocab_size)]
    common = sum(len(_spans(a, lengths) & _spans(b, lengths)) for a, b in zip(expected, given, strict=True))
    return same / len(texts), common / sum(map(len, expected))


def _spans(encoded: list[int], lengths: list[int]) -> set[tuple[int, int]]:
    spans, position = set(), 0
    for index in encoded:
        spans.add((position, index))
        position += 1 if 3 <= index < 259 else lengths[index]
    return spans


def test_the_original_merges_keep_the_order_of_their_scores(real_data):
    pieces = read_pieces((real_data / "tokenizer.model").read_bytes())
    scores = {piece.text: piece.score for piece in pieces}
    merges = [scores[left + right] for left, right in ranked_merges(pieces)]
    assert len(merges) > 50_000
    assert merges == sorted(merges, reverse=True)


def test_documents_become_the_published_ids_and_blank_lines_are_none(merged, tmp_path):
    """As published, BOS before every line and no EOS; upstream made a document of a blank line as well."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "poem.txt").write_text("白日依山尽\n\n黄河入海流\n", encoding="utf-8")
    options = CorpusOptions("Line", add_bos=True, add_eos=False, held_out_fraction=0.0)
    datasets = [dataset_at(corpus, find_text_files)]
    cache = build_or_open(tmp_path / "cache", datasets, load_tokenizer(merged), options)
    lines = ["1 39226 30325 33282 30329 32555", "1 36982 30828 30752 30581 31151"]
    assert list(map(int, cache.train)) == [each for line in lines for each in ids(line)]


def test_constrained_scoring_reads_the_published_ids_of_the_letters(llama, merged):
    for directory in (llama, merged):
        letters = letters_of(load_tokenizer(directory))
        assert (letters.bare[0], letters.behind_colon[0]) == (319, 29909)
        assert letters.bare == (319, 350, 315, 360)
