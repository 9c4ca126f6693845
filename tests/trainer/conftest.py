"""Tiny tokenizers that several modules of these tests share."""

from pathlib import Path

import pytest

import tiny


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_chinese_sentencepiece(tmp_path_factory.mktemp("chinese")) / "tokenizer.model"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_sentencepiece(tmp_path_factory.mktemp("llama"))
