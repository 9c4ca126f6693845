"""Files that grow past the page cache hold what was appended, whatever the sizes, and wherever they began."""

import errno
import os

import pytest

from herdsman_trainer.errors import Temporary
from herdsman_trainer.weights import appending
from herdsman_trainer.weights.appending import ALIGNMENT, Appender, Writer

PIECE = 4 * ALIGNMENT


@pytest.fixture
def writer(monkeypatch):
    monkeypatch.setattr(appending, "PIECE_BYTES", PIECE)
    writer = Writer()
    yield writer
    writer.close()


def content(size, first=0):
    return memoryview(bytes((first + number) % 251 for number in range(size)))


SIZES = [
    ("nothing", [0]),
    ("less than a block", [10]),
    ("a block", [ALIGNMENT]),
    ("just more than a piece", [PIECE + 1]),
    ("several pieces at once", [3 * PIECE]),
    ("small ones over the edge of a piece", [PIECE - 3, 2, 5, PIECE]),
    ("many more pieces than may wait", [20 * PIECE + 17, 1]),
]


@pytest.mark.parametrize("sizes", [case[1] for case in SIZES], ids=[case[0] for case in SIZES])
@pytest.mark.parametrize("flushed", [False, True], ids=["flushed at the end", "flushed after each"])
def test_a_file_holds_what_was_appended(tmp_path, writer, sizes, flushed):
    file, expected = Appender(tmp_path / "file", 0, writer), b""
    for size in sizes:
        data = content(size, first=len(expected))
        file.write(data)
        expected += data
        if flushed:
            file.flush()
            assert (tmp_path / "file").read_bytes() == expected
    file.flush()
    file.sync()
    file.close()
    assert (tmp_path / "file").read_bytes() == expected


@pytest.mark.parametrize("position", [0, 1, ALIGNMENT - 1, ALIGNMENT, PIECE + 5])
def test_it_goes_on_at_a_position_and_drops_what_stood_behind(tmp_path, writer, position):
    (tmp_path / "file").write_bytes(content(2 * PIECE))
    file = Appender(tmp_path / "file", position, writer)
    added = content(PIECE + 100, first=7)
    file.write(added)
    file.flush()
    file.close()
    assert (tmp_path / "file").read_bytes() == bytes(content(position)) + added


def test_files_of_one_writer_do_not_mix(tmp_path, writer):
    files = [Appender(tmp_path / str(number), 0, writer) for number in range(3)]
    for turn in range(30):
        for number, file in enumerate(files):
            file.write(content(1000 + number, first=turn))
    for number, file in enumerate(files):
        file.flush()
        file.close()
        expected = b"".join(content(1000 + number, first=turn) for turn in range(30))
        assert (tmp_path / str(number)).read_bytes() == expected


@pytest.mark.parametrize("refused", ["open", "pwrite"], ids=["opening so", "writing so"])
def test_a_file_system_that_needs_the_page_cache_gets_the_same_bytes(tmp_path, writer, monkeypatch, refused):
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("this system has no O_DIRECT")
    original, direct = {name: getattr(os, name) for name in ("open", "pwrite")}, set()

    def opened(path, flags, *rest, **named):
        if flags & os.O_DIRECT and refused == "open":
            raise OSError(errno.EINVAL, "Invalid argument")
        descriptor = original["open"](path, flags & ~os.O_DIRECT, *rest, **named)
        if flags & os.O_DIRECT:
            direct.add(descriptor)
        return descriptor

    def written(descriptor, data, place):
        if descriptor in direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return original["pwrite"](descriptor, data, place)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "pwrite", written)
    file = Appender(tmp_path / "file", 0, writer)
    file.write(content(3 * PIECE + 9))
    file.flush()
    file.close()
    assert (tmp_path / "file").read_bytes() == bytes(content(3 * PIECE + 9))
    assert bool(direct) == (refused == "pwrite")


def test_writes_that_take_a_part_only_are_gone_on_with(tmp_path, writer, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, place: write(descriptor, data[:ALIGNMENT], place))
    file = Appender(tmp_path / "file", 0, writer)
    file.write(content(2 * PIECE + 9))
    file.flush()
    file.close()
    assert (tmp_path / "file").read_bytes() == bytes(content(2 * PIECE + 9))


def test_a_full_volume_is_told_by_the_next_write_or_flush(tmp_path, writer, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = Appender(tmp_path / "file", 0, writer)
    monkeypatch.setattr(os, "pwrite", full)
    file.write(content(PIECE))
    with pytest.raises(Temporary, match="no space left") as caught:
        file.flush()
    assert caught.value.reason == "DiskFull"
    with pytest.raises(Temporary):
        file.write(content(4 * PIECE))
    file.close()
