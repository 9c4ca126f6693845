"""Files are unpacked and cut into pieces of whole documents; where they are cut changes nothing."""

import bz2
import gzip
import io
import json
import lzma
import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from data_pieces import small_pieces
from herdsman_trainer.corpora import find_text_files, read_documents, read_pieces
from herdsman_trainer.data import pieces as module
from herdsman_trainer.data.compression import zstd
from herdsman_trainer.data.pieces import Place
from herdsman_trainer.errors import BadInput
from herdsman_trainer.instruction_files import find_instruction_files, read_instructions

PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1}),
}
LINES = ["河水从山里流出来", "a line", "", " \u3000 ", "x" * 90, "两行\r", "end"]


def refusal(action):
    with pytest.raises(BadInput) as caught:
        action()
    return caught.value


def texts(path, separator="Line"):
    return [(document.text, document.line) for document in read_documents([path], separator)]


class TestCutting:
    @given(
        st.lists(st.sampled_from(["a", "中文字", "", " ", "\u3000", "long " * 9, "r\r"]), max_size=40),
        st.sampled_from(["Line", "BlankLine"]),
        st.integers(2, 60),
        st.booleans(),
        st.booleans(),
    )
    def test_pieces_of_any_size_hold_the_same_documents(self, tmp_path_factory, lines, separator, size, mark, end):
        path = tmp_path_factory.mktemp("cut") / "a.txt"
        path.write_bytes(b"\xef\xbb\xbf" * mark + "\n".join(lines).encode() + b"\n" * end)
        whole = texts(path, separator)
        with small_pieces(size):
            assert texts(path, separator) == whole

    @pytest.mark.parametrize("separator", ["Line", "BlankLine"])
    def test_a_reader_goes_on_at_the_end_of_any_piece(self, tmp_path, separator):
        path = tmp_path / "a.txt"
        path.write_text("\n".join(LINES * 5), encoding="utf-8")
        with small_pieces(60):
            cut = list(read_pieces(path, Place(), separator))
            assert len(cut) > 5
            for number, piece in enumerate(cut):
                rest = list(read_pieces(path, piece.end, separator))
                assert b"".join(each.data for each in rest) == b"".join(each.data for each in cut[number + 1 :])
                assert [each.start.line for each in rest][:1] == [each.start.line for each in cut[number + 1 :]][:1]

    def test_memory_is_a_piece_and_not_the_file(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("0123456789\n" * 1000)
        with small_pieces(110):
            sizes = [len(piece.data) for piece in read_pieces(path, Place(), "Line")]
        assert max(sizes) <= 110 + 55
        assert sum(sizes) == 11_000

    @pytest.mark.parametrize("separator", ["Line", "BlankLine"])
    def test_text_that_never_ends_is_refused_where_it_starts_before_it_fills_the_memory(
        self, tmp_path, monkeypatch, separator
    ):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", 200)
        path = tmp_path / "a.txt.gz"
        path.write_bytes(gzip.compress(b"fine\n\n\n" + b"x" * 100_000 + b"\n" * (separator == "Line")))
        with small_pieces(20):
            error = refusal(lambda: texts(path, separator))
        assert "longer than" in error.message
        assert (error.file, error.line) == (str(path), 4)


class TestPacked:
    @pytest.mark.parametrize("suffix", PACK)
    @pytest.mark.parametrize("separator", ["Line", "BlankLine"])
    def test_text_is_the_same_packed_in_any_way_and_read_on_from_any_place(self, tmp_path, suffix, separator):
        content = "\n".join(LINES * 20).encode()
        (tmp_path / "plain.txt").write_bytes(content)
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(PACK[suffix](content))
        assert find_text_files(path) == [path]
        assert texts(path, separator) == texts(tmp_path / "plain.txt", separator)
        with small_pieces(200):
            first, *_ = read_pieces(path, Place(), separator)
            rest = b"".join(piece.data for piece in read_pieces(path, first.end, separator))
        assert first.data + rest == content

    @pytest.mark.parametrize("suffix", PACK)
    def test_json_lines_and_arrays_are_the_same_packed_in_any_way(self, tmp_path, suffix):
        values = [{"instruction": f"{n}?", "output": "好" * n} for n in range(1, 9)]
        for name, content in {
            "lines.jsonl": "\n".join(json.dumps(value) for value in values),
            "array.json": json.dumps(values, indent=1),
        }.items():
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(PACK[suffix](content.encode()))
            assert find_instruction_files(path) == [path]
            with small_pieces(40):
                assert [(r.prompt, r.output) for r in read_instructions([path])] == [
                    (value["instruction"], value["output"]) for value in values
                ]

    def test_several_archives_in_one_file_are_one_text(self, tmp_path):
        for suffix in (".gz", ".bz2", ".xz", ".zst"):
            path = tmp_path / f"a.txt{suffix}"
            path.write_bytes(PACK[suffix](b"one\n") + PACK[suffix](b"two\n"))
            assert [text for text, _ in texts(path)] == ["one", "two"], suffix

    @pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
    @pytest.mark.parametrize("damage", ["cut", "flipped", "another file"])
    def test_a_damaged_archive_is_refused_with_its_name(self, tmp_path, suffix, damage):
        content = bytearray(PACK[suffix](bytes(range(256)).hex().encode() * 50))
        if damage == "cut":
            del content[-12:]
        elif damage == "flipped":
            content[len(content) // 2] ^= 0xFF
        else:
            content = bytearray(b"just text\n" * 10)
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(content)
        error = refusal(lambda: texts(path))
        assert error.file == str(path)
        assert "archive" in error.message
        assert ("cut" in error.message) == (damage == "cut")
        assert "Copy the file again" in error.hint

    def test_bytes_of_a_packed_file_that_are_not_utf_8_are_named_by_their_unpacked_place(self, tmp_path):
        path = tmp_path / "a.txt.gz"
        path.write_bytes(gzip.compress(b"good\n" * 20 + b"\xff\n"))
        with small_pieces(30):
            error = refusal(lambda: texts(path))
        assert (error.line, "byte 100 " in error.message) == (21, True)

    def test_a_zstandard_window_that_fills_the_memory_is_refused_with_the_remedy(self, tmp_path):
        options = {zstd.CompressionParameter.window_log: 30, zstd.CompressionParameter.enable_long_distance_matching: 1}
        buffer = io.BytesIO()
        with zstd.open(buffer, "wb", options=options) as file:
            for _ in range(3):
                file.write(b"x" * 2**20)
        path = tmp_path / "a.txt.zst"
        path.write_bytes(buffer.getvalue())
        error = refusal(lambda: texts(path))
        assert "too much memory" in error.message
        assert "128 MiB" in error.hint

    @pytest.mark.skipif(sys.platform == "win32", reason="links")
    def test_a_packed_parquet_file_is_refused(self, tmp_path):
        (tmp_path / "a.parquet.gz").write_bytes(b"x")
        for source in (tmp_path, tmp_path / "a.parquet.gz"):
            error = refusal(lambda source=source: find_text_files(source))
            assert "inside of an archive" in error.message
            assert "compressed on the inside" in error.hint


class TestParquet:
    @staticmethod
    def write(path, columns, **options):
        parquet.write_table(pa.table(columns), path, **options)
        return path

    @pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
    def test_rows_are_documents_over_row_groups_and_pieces(self, tmp_path, compression, kind):
        found = [f"行 {n}\n\nstill {n}" for n in range(300)]
        columns = {"id": list(range(300)), "text": pa.array(found, pa.string()).cast(kind)}
        path = self.write(tmp_path / "a.parquet", columns, row_group_size=70, compression=compression)
        with small_pieces(200):
            assert texts(path) == [(text, n) for n, text in enumerate(found, start=1)]
            _, second, *_ = read_pieces(path, Place(), "Line")
            rest = list(read_pieces(path, second.end, "Line"))
            assert rest[0].records[0].number == second.end.position + 1
            assert sum(len(piece.records) for piece in rest) == 300 - second.end.position

    def test_nothing_and_white_space_are_no_documents(self, tmp_path):
        path = self.write(tmp_path / "a.parquet", {"text": ["one", None, " \u3000", "", "two"]})
        assert texts(path) == [("one", 1), ("two", 5)]

    def test_records_of_instructions(self, tmp_path):
        path = self.write(
            tmp_path / "a.parquet",
            {"instruction": ["Add.", "Say."], "input": ["1 2", None], "output": ["3", "x"], "more": [1, 2]},
        )
        assert [(r.prompt, r.output, r.title) for r in read_instructions([path])] == [
            ("Add.\n1 2", "3", "Row 1"),
            ("Say.", "x", "Row 2"),
        ]
        without = self.write(tmp_path / "b.parquet", {"instruction": ["Say."], "output": ["x"]})
        assert [(r.prompt, r.output) for r in read_instructions([without])] == [("Say.", "x")]

    @pytest.mark.parametrize(
        ("columns", "message", "hint"),
        [
            ({"content": ["x"]}, 'no column "text" (there are: content)', 'Rename the column that holds it to "text"'),
            ({"text": [1]}, 'column "text" holds int64 and no strings', "as strings"),
            ({"text": [["x"]]}, 'column "text" holds list', "as strings"),
        ],
    )
    def test_wrong_columns_are_refused(self, tmp_path, columns, message, hint):
        path = self.write(tmp_path / "a.parquet", columns)
        error = refusal(lambda: texts(path))
        assert message in error.message
        assert error.file == str(path)
        assert hint in error.hint

    @pytest.mark.parametrize("damage", ["cut", "no parquet"])
    def test_a_damaged_file_is_refused(self, tmp_path, damage):
        path = self.write(tmp_path / "a.parquet", {"text": ["x" * 100] * 100})
        path.write_bytes(path.read_bytes()[:-20] if damage == "cut" else b"text")
        error = refusal(lambda: texts(path))
        assert "no sound Parquet file" in error.message
        assert error.file == str(path)

    def test_a_text_that_is_too_long_is_refused_with_its_row(self, tmp_path, monkeypatch):
        monkeypatch.setattr("herdsman_trainer.data.parquet.MAX_RECORD_BYTES", 50)
        path = self.write(tmp_path / "a.parquet", {"text": ["fine", "x" * 51]})
        error = refusal(lambda: texts(path))
        assert (error.line, "longer than" in error.message) == (2, True)
