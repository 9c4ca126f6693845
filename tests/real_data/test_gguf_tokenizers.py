"""llama.cpp with the real tokenizers in a GGUF file: the same ids as SentencePiece and as our own, id by id."""

import json
from itertools import accumulate

import pytest
import sentencepiece
from gguf import TokenType

from gguf_files import wide_llama, write_gguf_files
from herdsman_trainer.prompts import TEMPLATES, Message
from herdsman_trainer.tokenizer_merge import merge_tokenizer
from herdsman_trainer.tokenizers import load_tokenizer
from herdsman_trainer.weights.gguf_vocabulary import read_vocabulary
from llama_cpp import LlamaCpp
from tiny import CHINESE, ENGLISH, tiny_bpe_tokenizer

pytestmark = pytest.mark.real_data

TEXTS = {
    "leading spaces": "   三个空格 and  two",
    "a trailing space": "### Response: ",
    "only spaces": "     ",
    "nothing": "",
    "full-width": "ＡＢＣ１２３，。！？～（）\u3000全角",
    "emoji": "😀👍🏽👨‍👩‍👧‍👦🇨🇳❤️",
    "control strings": "含<s>标记</s>[PAD]<unk><0x41> and <s> again </s>",
    "mixed newlines": "a\r\nb\n\n\nc\rd\n\te\n",
    "dates and figures": "1949年10月1日 12345 3.14159 1,000,000",
    "unreachable pieces": "意大利越来越俱乐部",
    "a poem": "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。",
    "the mark itself": "▁▁x ▁y▁",
    "other scripts": "한국어 العربية हिन्दी ไทย e\u0301 ﬁ",
    "zero-width": "a\u200bb\ufeffc\u00a0d\x00e",
}


@pytest.fixture(scope="module")
def tokenizers(real_data, tmp_path_factory):
    """The directory of each vocabulary by its size: LLaMA's, Chinese-LLaMA's, and Chinese-Alpaca's with [PAD]."""
    root = tmp_path_factory.mktemp("tokenizers")
    found = {size: root / str(size) for size in (32000, 49953, 49954)}
    for directory in found.values():
        directory.mkdir()
    (found[32000] / "tokenizer.model").symlink_to(real_data / "tokenizer.model")
    for size, pad in ((49953, False), (49954, True)):
        merge_tokenizer(found[32000], [real_data / "chinese_sp.model"], found[size], pad=pad)
    return found


@pytest.fixture(scope="module")
def served(tokenizers, tmp_path_factory):
    """A tiny random model of each vocabulary, in llama.cpp."""
    known = {}

    def server(size):
        if size not in known:
            root = tmp_path_factory.mktemp("served")
            sizes = {"hidden_size": 32, "intermediate_size": 32}
            model = wide_llama(root / "model", tokenizers[size], **sizes)
            known[size] = LlamaCpp(write_gguf_files(root, model, "Q8_0", template="alpaca")["Q8_0"], context=1024)
        return known[size]

    return server


@pytest.mark.parametrize("size", [32000, 49953, 49954])
def test_llama_cpp_tokenises_like_sentencepiece(served, tokenizers, size):
    server, ours = served(size), load_tokenizer(tokenizers[size])
    library = sentencepiece.SentencePieceProcessor(str(tokenizers[size] / "tokenizer.model"))
    for name, text in TEXTS.items():
        assert server.tokenise(text) == ours.encode(text), name
        if "[PAD]" not in text:  # which is an ordinary piece to the library, and a control token to us
            assert server.tokenise(text) == library.encode(text), name


@pytest.mark.parametrize("size", [49953, 49954])
def test_whole_documents_and_answers_get_the_same_ids(real_data, served, tokenizers, size):
    server, ours = served(size), load_tokenizer(tokenizers[size])
    document = (real_data / "doc.txt").read_text(encoding="utf-8")
    assert len(document) > 2100
    assert server.tokenise(document) == ours.encode(document)
    records = json.loads((real_data / "ruozhiba_qa2449_gpt4o.json").read_text(encoding="utf-8"))
    for record in records[:200]:
        for text in (record["instruction"], record["output"]):
            assert server.tokenise(text) == ours.encode(text)


def test_the_published_ids(served):
    server = served(49953)
    assert server.tokenise("白日依山尽", bos=True) == [1, 39226, 30325, 33282, 30329, 32555]
    assert server.tokenise("黄河入海流", bos=True) == [1, 36982, 30828, 30752, 30581, 31151]


def test_control_strings_become_ids_only_where_llama_cpp_is_asked_to(served):
    server = served(49954)
    text = "含<s>标记</s>[PAD]"
    assert not {1, 2, 49953} & set(server.tokenise(text))
    assert {1, 2, 49953} < set(server.tokenise(text, parse_special=True))


def test_the_alpaca_prompt_has_the_published_ids(served, tokenizers):
    server, tokenizer = served(49954), load_tokenizer(tokenizers[49954])
    question = "为什么要减少污染，保护环境？"
    prompt = server.tokenise(server.prompt(("user", question)), bos=True, parse_special=True)
    assert prompt == TEMPLATES["alpaca"].chat_ids(tokenizer, [Message("user", question)])
    assert (len(prompt), prompt[0], prompt[-1]) == (43, 1, 29871)


def test_text_comes_back_from_ids(served, tokenizers):
    server, tokenizer = served(49953), load_tokenizer(tokenizers[49953])
    for name, text in TEXTS.items():
        expected = text.replace("▁", " ")  # the mark stands for a space
        assert server.text_of(tokenizer.encode(text)) in (expected, f" {expected}"), name  # the dummy prefix may show


def test_words_added_to_a_byte_level_bpe_are_cut_nearly_alike(real_data, tmp_path):
    """llama.cpp cuts at the longest added word first, the tokenizers library at the leftmost: some ids differ.

    What is measured is the share of tokens that stand in the same place.
    """
    base, merged = tiny_bpe_tokenizer(tmp_path / "base", 900, ENGLISH + CHINESE), tmp_path / "merged"
    merged.mkdir()
    merge_tokenizer(base, [real_data / "chinese_sp.model"], merged)
    model = wide_llama(tmp_path / "model", merged, hidden_size=32, intermediate_size=32)
    server = LlamaCpp(write_gguf_files(tmp_path, model, "Q8_0")["Q8_0"], context=1024)
    tokenizer = load_tokenizer(merged)
    records = json.loads((real_data / "ruozhiba_qa2449_gpt4o.json").read_text(encoding="utf-8"))
    words = read_vocabulary(merged, tokenizer.vocab_size)
    # In the vocabulary of a byte-level BPE a character stands for a byte; added words are written as they are.
    lengths = [
        len(text.encode()) if kind == TokenType.USER_DEFINED else len(text)
        for text, kind in zip(words.tokens, words.types, strict=True)
    ]
    same = total = 0
    for record in records[:200]:
        ours, theirs = (spans(encode(record["output"]), lengths) for encode in (tokenizer.encode, server.tokenise))
        same += len(ours & theirs)
        total += len(ours)
    assert total > 20_000
    assert 0.96 < same / total < 1.0


def spans(ids: list[int], lengths: list[int]) -> set[tuple[int, int]]:
    """Where each token begins, in bytes, and which it is."""
    return set(zip(accumulate((lengths[index] for index in ids), initial=0), ids, strict=False))
