"""GGUF files in llama.cpp itself: it continues as transformers does, tokenises as we do, and writes our prompts."""

import pytest
import torch
from transformers import LlamaForCausalLM

from gguf_files import wide_llama, write_gguf_files
from herdsman_trainer.prompts import TEMPLATES, Message
from herdsman_trainer.tokenizers import load_tokenizer
from llama_cpp import LlamaCpp
from tiny import (
    CHATML_TOKENS,
    CHINESE,
    CONTROL_TOKENS,
    ENGLISH,
    tiny_bpe_tokenizer,
    tiny_chatml_tokenizer,
    tiny_sentencepiece,
)

CONVERSATION = [
    Message("user", "为什么天空是蓝色的？ Answer in 12 words."),
    Message("assistant", "Because of the air."),
    Message("user", "And  the sea\n\nat night?"),
]
TEXTS = [
    *ENGLISH.splitlines(),
    *CHINESE.splitlines(),
    "",
    " ",
    "  leading",
    "   three, and  two  inside ",
    "\n",
    "\n\n x\r\n y\t z\r",
    "ＡＢＣ１２３，！\u3000full-width",
    "😀👍🏽👨‍👩‍👧 e\u0301 é",
    "<s> a</s>[PAD]<unk><0x41>▁▁",
    "<|begin_of_text|>x<|eot_id|> <|im_start|>user",
    "1 12 123 1234 12345 1,000.50 2026年11月",
    "It's we'LL don'T",
    "\x00 \u200b 한국어 العربية हिन्दी",
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        "sentencepiece": tiny_sentencepiece(root / "sentencepiece", 420),
        "llama-3": tiny_bpe_tokenizer(root / "llama-3", 700, ENGLISH + CHINESE),
        "chatml": tiny_chatml_tokenizer(root / "chatml"),
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory, tokenizers):
    """Give llama.cpp with a tiny model that has a tokenizer of this kind, and prompts of this template."""
    known = {}

    def server(kind, template=None):
        if (kind, template) not in known:
            root = tmp_path_factory.mktemp("served")
            model = wide_llama(root / "model", tokenizers[kind], hidden_size=64, intermediate_size=64)
            known[kind, template] = LlamaCpp(write_gguf_files(root, model, "F16", template=template)["F16"])
        return known[kind, template]

    return server


LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({}, ["F32", "F16"]),
        ({"tie_word_embeddings": True, "num_hidden_layers": 2}, ["F32"]),
        ({"head_dim": 32, "num_key_value_heads": 1, "rms_norm_eps": 1e-3}, ["F32"]),
        ({"rope_parameters": LLAMA_3_ROPE}, ["F32"]),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 20000.0}}, ["F32"]),
    ],
    ids=["plain", "tied", "narrow heads", "rope of Llama 3.1", "linear rope"],
)
def test_llama_cpp_continues_as_transformers_does(tmp_path, tokenizers, fields, kinds):
    model = wide_llama(tmp_path / "model", tokenizers["sentencepiece"], **fields)
    prompt = [1, *(7 * place % 400 + 3 for place in range(90))]
    for kind, path in write_gguf_files(tmp_path, model, *kinds).items():
        reference = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
        if kind == "F16":
            reference = reference.half().float()
        expected = reference.generate(
            torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        assert LlamaCpp(path).greedy(prompt, 24) == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", ["BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"])
def test_every_type_loads_and_answers(tmp_path, tokenizers, kind):
    model = wide_llama(tmp_path / "model", tokenizers["sentencepiece"])
    server = LlamaCpp(write_gguf_files(tmp_path, model, kind, template="alpaca")[kind])
    answer = server.ask(
        "/v1/chat/completions", messages=[{"role": "user", "content": "Why?"}], max_tokens=5, ignore_eos=True
    )
    assert answer["usage"]["completion_tokens"] == 5
    assert len(server.greedy([1, 40, 50], 5)) == 5


@pytest.mark.parametrize("kind", ["sentencepiece", "llama-3", "chatml"])
def test_llama_cpp_tokenises_text_as_we_do(served, tokenizers, kind):
    server, tokenizer = served(kind), load_tokenizer(tokenizers[kind])
    for text in TEXTS:
        assert server.tokenise(text) == tokenizer.encode(text), text
        assert server.text_of(tokenizer.encode(text)).lstrip(" ") == tokenizer.decode(tokenizer.encode(text)).lstrip(
            " "
        )


def test_llama_3_takes_digits_in_threes(served, tokenizers):
    server = served("llama-3")
    pieces = [server.text_of([index]) for index in server.tokenise("x1234567")]
    assert "".join(pieces) == "x1234567"
    starts = [sum(map(len, pieces[:place])) for place in range(len(pieces))]
    assert {1, 4, 7} <= set(starts)


@pytest.mark.parametrize(
    ("kind", "tokens"), [("llama-3", CONTROL_TOKENS), ("chatml", CHATML_TOKENS), ("sentencepiece", ("<s>", "</s>"))]
)
def test_control_tokens_are_parsed_only_where_that_is_asked_for(served, tokenizers, kind, tokens):
    server, tokenizer = served(kind), load_tokenizer(tokenizers[kind])
    for token in tokens:
        assert server.tokenise(token, parse_special=True)[-1:] == [tokenizer.control_id(token)]
        assert tokenizer.control_id(token) not in server.tokenise(token)


@pytest.mark.parametrize(
    ("kind", "template"),
    [("sentencepiece", "alpaca"), ("sentencepiece", "llama-2"), ("llama-3", "llama-3"), ("chatml", "chatml")],
)
@pytest.mark.parametrize("system", [None, "你是 a pirate."])
def test_the_chat_template_gives_the_ids_of_our_own_prompts(served, tokenizers, kind, template, system):
    server, tokenizer = served(kind, template), load_tokenizer(tokenizers[kind])
    conversation = [*([Message("system", system)] if system else []), *CONVERSATION]
    text = server.prompt(*((message.role, message.content) for message in conversation))
    expected = TEMPLATES[template].chat_ids(tokenizer, conversation)
    assert server.tokenise(text, bos=True, parse_special=True) == expected
    answer = server.ask(
        "/v1/chat/completions",
        messages=[{"role": message.role, "content": message.content} for message in conversation],
        max_tokens=1,
    )
    assert answer["usage"]["prompt_tokens"] == len(expected)


@pytest.mark.parametrize(
    ("kind", "template", "end"), [("llama-3", "llama-3", "<|eot_id|>"), ("chatml", "chatml", "<|im_end|>")]
)
def test_an_answer_ends_at_the_end_of_the_turn(served, tokenizers, kind, template, end):
    server, tokenizer = served(kind, template), load_tokenizer(tokenizers[kind])
    index = tokenizer.control_id(end)
    answer = server.ask("/completion", prompt=[index, 60], n_predict=9, logit_bias=[[index, 1000.0]], temperature=0)
    assert answer["stop_type"] == "eos"
