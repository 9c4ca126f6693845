"""Where the real tokenizers and records are: HERDSMAN_REAL_DATA, or shared/data beside the project."""

import os
from pathlib import Path

import pytest

BESIDE_THE_PROJECT = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The directory of the real files; skips the test where there is none."""
    directory = Path(os.environ.get("HERDSMAN_REAL_DATA") or BESIDE_THE_PROJECT)
    if not (directory / "tokenizer.model").is_file():
        pytest.skip(f"no real tokenizers in {directory}: set HERDSMAN_REAL_DATA to the directory with tokenizer.model")
    return directory
