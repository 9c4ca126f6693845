"""What is needed next is asked for in time, in order, and no further ahead than the window."""

import os
from pathlib import Path

import pytest
import torch

from herdsman_trainer.weights import reading_ahead
from herdsman_trainer.weights.reading import open_safetensors
from herdsman_trainer.weights.reading_ahead import Place, ReadingAhead
from herdsman_trainer.weights.writing import write_tensors


@pytest.fixture
def asked(monkeypatch):
    """What the system was asked for: file, first byte, bytes. The window is 40 bytes, a chunk 10."""
    found = []

    def advise(descriptor, start, size, advice):
        assert advice == os.POSIX_FADV_WILLNEED
        found.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, start, size))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(reading_ahead, "WINDOW_BYTES", 40)
    monkeypatch.setattr(reading_ahead, "CHUNK_BYTES", 10)
    return found


def places(directory, *sizes):
    made, start = [], {"a": 100, "b": 200}
    for name, size in sizes:
        (directory / name).touch()
        made.append(Place(directory / name, start[name], size))
        start[name] += size
    return made


def test_it_stays_within_the_window(tmp_path, asked):
    reading = ReadingAhead(places(tmp_path, ("a", 25), ("a", 60), ("b", 30)))
    assert reading.wanted(0)
    reading.read()
    assert asked == [("a", 100, 10), ("a", 110, 10), ("a", 120, 5), ("a", 125, 10), ("a", 135, 10)]
    assert not reading.wanted(5)
    assert reading.wanted(1)
    reading.read()
    assert asked[5:] == [("a", 145, 10)]
    reading.close()


def test_it_goes_on_in_the_next_file_and_ends(tmp_path, asked):
    reading = ReadingAhead(places(tmp_path, ("a", 15), ("b", 15)))
    for _ in range(10):
        if reading.wanted(10):
            reading.read()
    assert asked == [("a", 100, 10), ("a", 110, 5), ("b", 200, 10), ("b", 210, 5)]
    reading.close()


def test_the_place_of_a_tensor_is_where_its_bytes_lie(tmp_path):
    tensors = {"small": torch.arange(5, dtype=torch.int16), "wide": torch.arange(6.0), "one": torch.tensor(7.0)}
    write_tensors(tmp_path / "file", tensors)
    content = (tmp_path / "file").read_bytes()
    with open_safetensors(tmp_path / "file") as files:
        for name, tensor in tensors.items():
            place = files.place(name)
            assert content[place.start : place.start + place.nbytes] == tensor.numpy().tobytes()
