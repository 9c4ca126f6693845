"""What several modules of these tests share: tiny tokenizers, and one thread so that sums come out alike."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tiny


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_chinese_sentencepiece(tmp_path_factory.mktemp("chinese")) / "tokenizer.model"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_sentencepiece(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
