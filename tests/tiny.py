"""Builders of tiny artefacts: tokenizers that train in a moment and a Llama of two layers.

Every builder writes into the directory it is given and returns that directory. Training is done once per process;
the bytes are the same in every process, so digests may be compared between tests.
"""

import io
import json
from functools import cache
from pathlib import Path

ENGLISH = """
The river rises in the hills and reaches the sea after three hundred miles.
Farmers along its banks grow wheat, barley and apples; in a dry year they share the water.
A teacher asked the class: what do you see when you look at the map of the world?
"I see water," said one child. "I see names," said another, "and I cannot read them all."
To learn a language you need time, patience, and a reason to speak it every day.
The library opens at 9 and closes at 17; on Sundays it stays closed.
In 1987 the old bridge was replaced by a new one, 240 metres long and 12 metres wide.
def add(a, b):  return a + b   # the sum of two numbers
Which of these sentences is true? None of them, or all of them, depending on the day.
Write a short answer. Explain why the sky is blue. Describe the task and complete the request.
"""

CHINESE = """
河水从山里流出来，经过三百里路，最后流入大海。
农民在河边种小麦、大麦和苹果；天旱的时候，大家分水。
老师问学生：你们看世界地图的时候，看到了什么？
一个孩子说：我看到了水。另一个孩子说：我看到了很多名字，可是我不认识。
学习一种语言需要时间、耐心，还需要每天说话的理由。
图书馆上午开门，晚上关门；星期天不开门。
旧的桥已经没有了，新的桥很长，也很宽。
为什么天空是蓝色的？请你写一个简单的回答。
我们每天学习，每天读书，每天写字，时间过得很快。
中国有很多大河，也有很多高山；世界上有很多国家，也有很多语言。
"""

CONTROL_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tiny_sentencepiece(directory: Path, vocab_size: int = 400, text: str = ENGLISH) -> Path:
    """Write a BPE SentencePiece `tokenizer.model` with LLaMA's settings: byte fallback, identity normalisation."""
    return _write(directory, {"tokenizer.model": _sentencepiece(vocab_size, text)})


def tiny_chinese_sentencepiece(directory: Path, vocab_size: int = 180, text: str = CHINESE) -> Path:
    """Write a unigram SentencePiece `tokenizer.model` with nmt_nfkc normalisation and no byte fallback."""
    return _write(directory, {"tokenizer.model": _chinese_sentencepiece(vocab_size, text)})


def tiny_bpe_tokenizer(
    directory: Path, vocab_size: int = 420, text: str = ENGLISH, control_tokens: tuple[str, ...] = CONTROL_TOKENS
) -> Path:
    """Write a byte-level BPE `tokenizer.json` with Llama 3's splitting; BOS and EOS come first in `control_tokens`."""
    return _write(directory, _bpe_files(vocab_size, text, control_tokens))


def tiny_chatml_tokenizer(directory: Path, vocab_size: int = 420, text: str = ENGLISH) -> Path:
    """Write a byte-level BPE tokenizer with SmolLM2's control tokens, where EOS is `<|im_end|>`."""
    return _write(directory, _bpe_files(vocab_size, text, CHATML_TOKENS, bos="<|im_start|>", eos="<|im_end|>"))


def tiny_llama(
    directory: Path,
    tokenizer: Path | None = None,
    tied: bool = False,
    seed: int = 0,
    vocab_size: int | None = None,
    hidden_size: int = 32,
) -> Path:
    """Write a random two-layer Llama (4 heads, 2 key-value heads) as safetensors, with config and tokenizer files.

    The embedding has as many rows as the tokenizer has ids; without a tokenizer a tiny SentencePiece model is written.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from herdsman_trainer.tokenizers import copy_tokenizer, load_tokenizer

    directory.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        tiny_sentencepiece(directory)
    elif tokenizer != directory:
        copy_tokenizer(tokenizer, directory)
    text_tokenizer = load_tokenizer(directory)
    config = LlamaConfig(
        vocab_size=vocab_size or text_tokenizer.vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=text_tokenizer.bos_id,
        eos_token_id=text_tokenizer.eos_id,
        pad_token_id=text_tokenizer.pad_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    return directory


@cache
def _sentencepiece(vocab_size: int, text: str) -> bytes:
    return _train_sentencepiece(
        text,
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=True,
    )


@cache
def _chinese_sentencepiece(vocab_size: int, text: str) -> bytes:
    return _train_sentencepiece(text, vocab_size=vocab_size, model_type="unigram", hard_vocab_limit=False)


def _train_sentencepiece(text: str, **options: object) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in text.splitlines() if line]),
        model_writer=model,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


@cache
def _bpe(vocab_size: int, text: str, control_tokens: tuple[str, ...], bos: str) -> str:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(control_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    tokenizer.add_special_tokens(list(control_tokens))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return str(tokenizer.to_str(pretty=True))


def _bpe_files(
    vocab_size: int, text: str, control_tokens: tuple[str, ...], bos: str | None = None, eos: str | None = None
) -> dict[str, bytes]:
    bos, eos = bos or control_tokens[0], eos or control_tokens[1]
    config = {
        "bos_token": bos,
        "eos_token": eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {
        "tokenizer.json": _bpe(vocab_size, text, control_tokens, bos).encode(),
        "tokenizer_config.json": json.dumps(config, indent=2).encode(),
        "special_tokens_map.json": json.dumps({"bos_token": bos, "eos_token": eos}, indent=2).encode(),
    }


def _write(directory: Path, files: dict[str, bytes]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory
