"""Files are cut into pieces of some bytes, so that small texts have many."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def small_pieces(size: int) -> Iterator[None]:
    """Read and cut in pieces of about `size` bytes, and encode three texts at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("herdsman_trainer.data.compression.CHUNK_BYTES", size // 2)
        patch.setattr("herdsman_trainer.data.pieces.PIECE_BYTES", size)
        patch.setattr("herdsman_trainer.corpus_encoding._TEXTS_AT_ONCE", 3)
        yield
