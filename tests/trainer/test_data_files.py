"""Files of a dataset are found in a fixed order and read as documents; what is wrong is named with file and line."""

import json
from pathlib import Path

import pytest

from data_pieces import small_pieces
from herdsman_trainer import text_files
from herdsman_trainer.corpora import ReadCounts, find_text_files, lines_of, read_documents
from herdsman_trainer.data import compression
from herdsman_trainer.data.pieces import Place, TextPiece
from herdsman_trainer.errors import BadInput
from herdsman_trainer.instruction_files import read_pieces
from herdsman_trainer.json_records import read_lines


def write(directory, files):
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return directory


def texts(path, separator="Line", counts=None):
    return [document.text for document in read_documents(find_text_files(path), separator, counts)]


def records_of(path):
    for piece in read_pieces(path, Place()):
        if isinstance(piece, TextPiece):
            yield from read_lines(path, enumerate(lines_of(piece), piece.start.line))
        else:
            yield from piece.records


def refusal(action):
    with pytest.raises(BadInput) as caught:
        action()
    return caught.value


class TestFinding:
    def test_files_are_found_in_sub_directories_and_sorted_by_relative_name(self, tmp_path):
        write(tmp_path, {"b.txt": "x", "a/z.txt": "x", "a/b.jsonl": "x", "A.TXT": "x", "notes.md": "x"})
        names = [path.relative_to(tmp_path).as_posix() for path in find_text_files(tmp_path)]
        assert names == ["A.TXT", "a/b.jsonl", "a/z.txt", "b.txt"]

    def test_a_single_file_is_a_dataset(self, tmp_path):
        assert find_text_files(write(tmp_path, {"a.txt": "x"}) / "a.txt") == [tmp_path / "a.txt"]

    def test_hidden_files_and_the_manifest_of_an_artifact_are_not_read(self, tmp_path):
        write(tmp_path, {"a.txt": "x", ".b.txt": "x", ".git/c.txt": "x"})
        (tmp_path / "herdsman-artifact.json").write_text("{}")
        assert text_files.find_files(tmp_path, (".txt", ".json")) == [tmp_path / "a.txt"]

    def test_a_mounted_config_map_is_read_once(self, tmp_path):
        write(tmp_path, {"..2026/a.txt": "one"})
        (tmp_path / "..data").symlink_to("..2026")
        (tmp_path / "a.txt").symlink_to("..data/a.txt")
        assert texts(tmp_path) == ["one"]

    def test_a_linked_directory_inside_is_read_once_and_a_loop_ends(self, tmp_path):
        write(tmp_path, {"real/a.txt": "one"})
        (tmp_path / "link").symlink_to("real")
        (tmp_path / "real" / "up").symlink_to("..")
        assert texts(tmp_path) == ["one"]

    @pytest.mark.parametrize(
        ("target", "message"),
        [("../secret.txt", "leads out of"), ("../outside", "leads out of"), ("nowhere", "points to nothing")],
    )
    def test_a_link_that_leads_out_or_nowhere_is_refused(self, tmp_path, target, message):
        write(tmp_path, {"secret.txt": "x", "outside/a.txt": "x", "data/a.txt": "x"})
        (tmp_path / "data" / "z.txt").symlink_to(target)
        error = refusal(lambda: find_text_files(tmp_path / "data"))
        assert message in error.message
        assert error.file == str(tmp_path / "data" / "z.txt")
        assert error.hint

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("missing", "does not exist"),
            ("empty", "no *.txt, *.jsonl or *.parquet file; it is empty"),
            ("other", "it holds a.csv, b.pdf"),
            ("other/a.csv", "not a *.txt, *.jsonl or *.parquet file"),
        ],
    )
    def test_nothing_to_read_is_refused_with_what_is_there(self, tmp_path, name, message):
        (tmp_path / "empty").mkdir()
        write(tmp_path, {"other/a.csv": "x", "other/b.pdf": "x"})
        error = refusal(lambda: find_text_files(tmp_path / name))
        assert message in error.message
        assert error.file == str(tmp_path / name)
        assert error.hint


class TestDocuments:
    def test_every_line_that_is_not_blank_is_a_document(self, tmp_path):
        counts = ReadCounts()
        write(tmp_path, {"a.txt": "one\n\n  two \n\u3000\n三\n", "b.txt": "four"})
        assert texts(tmp_path, counts=counts) == ["one", "  two ", "三", "four"]
        assert counts == ReadCounts(documents=4, blank_lines=2)

    def test_lines_between_blank_lines_are_one_document(self, tmp_path):
        counts = ReadCounts()
        write(tmp_path, {"a.txt": "\none\ntwo\n\n \nthree\n", "b.txt": "four\nfive"})
        assert texts(tmp_path, "BlankLine", counts) == ["one\ntwo", "three", "four\nfive"]
        assert counts == ReadCounts(documents=3, blank_lines=3)

    def test_a_document_knows_file_and_line(self, tmp_path):
        path = write(tmp_path, {"a.txt": "\none\n\ntwo\nthree\n"}) / "a.txt"
        assert [d.line for d in read_documents([path], "Line")] == [2, 4, 5]
        assert [(d.file, d.line) for d in read_documents([path], "BlankLine")] == [(path, 2), (path, 4)]

    def test_byte_order_mark_and_carriage_returns_are_no_text(self, tmp_path):
        write(tmp_path, {"a.txt": b"\xef\xbb\xbfone\r\n\r\ntwo\r\n", "b.jsonl": b'\xef\xbb\xbf{"text": "three"}\r\n'})
        assert texts(tmp_path) == ["one", "two", "three"]

    def test_only_the_line_feed_ends_a_line(self, tmp_path):
        write(tmp_path, {"a.txt": "one\u2028still\x0cone\x85too\ntwo\n"})
        assert texts(tmp_path) == ["one\u2028still\x0cone\x85too", "two"]

    def test_a_json_line_is_one_document_whatever_the_separator(self, tmp_path):
        counts = ReadCounts()
        lines = [{"text": "one\n\ntwo", "id": 1}, {"text": " "}, {"text": "three"}]
        write(tmp_path, {"a.jsonl": "\n".join(map(json.dumps, lines)) + "\n\n"})
        assert texts(tmp_path, "Line", counts) == texts(tmp_path, "BlankLine") == ["one\n\ntwo", "three"]
        assert counts == ReadCounts(documents=2, empty_texts=1)

    @pytest.mark.parametrize(
        ("content", "line", "offset"),
        [
            (b"one\ntwo\n\xd6\xd0\xce\xc4\n", 3, 8),
            (b"\xef\xbb\xbfone \xff", 1, 7),
            (b"\xef\xbb\xbfone\n \xff", 2, 8),
            (b"one\n\xe4\xb8\n", 2, 4),
        ],
        ids=[
            "GB18030 in the third line",
            "a stray byte behind a byte order mark",
            "a stray byte in the line after it",
            "a character cut in half",
        ],
    )
    def test_what_is_not_utf_8_is_refused_with_line_and_byte(self, tmp_path, content, line, offset):
        path = write(tmp_path, {"a.txt": content}) / "a.txt"
        error = refusal(lambda: texts(path))
        assert (error.file, error.line) == (str(path), line)
        assert f"byte {offset} " in error.message
        assert "iconv" in error.hint

    def test_utf_16_is_named(self, tmp_path):
        path = write(tmp_path, {"a.txt": "one\n".encode("utf-16")}) / "a.txt"
        error = refusal(lambda: texts(path))
        assert "UTF-16" in error.message
        assert "iconv -f UTF-16" in error.hint

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"text": "cut', "Malformed JSON at line 2, column 10: unterminated string"),
            ('{"content": "x", "id": 1}', 'Line 2: no key "text" (its keys: content, id)'),
            ('{"text": 7}', 'Line 2: the key "text" is not a string'),
            ('"text"', "Line 2 is not a JSON object"),
            ('{"text": "half \\ud83d"}', "half of a surrogate pair"),
            ("[" * 100_000, "Malformed JSON at line 2"),
        ],
    )
    def test_a_wrong_json_line_is_refused_with_its_number(self, tmp_path, line, message):
        path = write(tmp_path, {"a.jsonl": '{"text": "fine"}\n' + line + "\n"}) / "a.jsonl"
        error = refusal(lambda: texts(path))
        assert message in error.message
        assert (error.file, error.line) == (str(path), 2)
        assert error.hint

    def test_a_pair_of_escaped_surrogates_is_text(self, tmp_path):
        write(tmp_path, {"a.jsonl": '{"text": "\\ud83d\\ude00"}'})
        assert texts(tmp_path) == ["😀"]

    @pytest.mark.parametrize("separator", ["Line", "BlankLine"])
    def test_a_document_above_the_limit_is_refused_where_it_starts(self, tmp_path, monkeypatch, separator):
        monkeypatch.setattr("herdsman_trainer.corpora.MAX_RECORD_BYTES", 100)
        monkeypatch.setattr("herdsman_trainer.data.pieces.MAX_RECORD_BYTES", 100)
        long = "x" * 101 if separator == "Line" else "y\n" * 101
        path = write(tmp_path, {"a.txt": f"one\n\n{long}\n"}) / "a.txt"
        error = refusal(lambda: texts(path, separator))
        assert "longer than" in error.message
        assert error.line == 3

    def test_reading_is_lazy(self, tmp_path):
        path = write(tmp_path, {"a.txt": b"one\n" * 10 + b"\xff\n"}) / "a.txt"
        with small_pieces(8):
            assert next(read_documents([path], "Line")).text == "one"


class TestJsonRecords:
    @pytest.fixture(params=[1, 7, 2**20], ids=lambda size: f"read in pieces of {size}")
    def _pieces(self, request, monkeypatch):
        monkeypatch.setattr(compression, "CHUNK_BYTES", request.param)

    @pytest.mark.usefixtures("_pieces")
    def test_an_array_and_lines_give_the_same_records(self, tmp_path):
        values = [{"a": '中文 \\ " 😀', "n": -12.5e3}, {}, {"list": [1, {"x": None}], "b": True}]
        contents = {
            "array": json.dumps(values, ensure_ascii=False),
            "indented": "\ufeff\r\n" + json.dumps(values, indent=2),
            "lines": "\n\n".join(json.dumps(value) for value in values),
        }
        for name, content in contents.items():
            (tmp_path / name).write_text(content, encoding="utf-8")
            assert [record.value for record in records_of(tmp_path / name)] == values
        lines = [(r.number, r.line) for r in records_of(tmp_path / "indented")]
        assert lines == [(1, 3), (2, 7), (3, 8)]

    @pytest.mark.usefixtures("_pieces")
    @pytest.mark.parametrize(
        ("content", "message", "line"),
        [
            ('[\n {"a": 1},\n {"a": }\n]', "line 3, column 8: expecting value", 3),
            ('[{"a": 1}\n {"a": 2}]', "line 2, column 2: expecting ',' or ']'", 2),
            ('[{"a": 1},\n]', "line 2, column 1: expecting value", 2),
            ('[{"a": 1},\n{"a": "cut', "line 2, column 7: unterminated string", 2),
            ('[{"a": 1}\n', "the file ends inside the array", 2),
            ('[{"a": 1}]\n[]', "line 2, column 1: extra data after the array", 2),
            ('[{"a": 1},\n 123]', "Record 2 is not a JSON object", 2),
            ('{"a": 1}\n{"a": 1},\n', "line 2, column 9: extra data", 2),
            ('{\n "a": 1\n}', "Malformed JSON at line 1, column 2", 1),
        ],
    )
    def test_malformed_json_is_refused_with_line_and_column(self, tmp_path, content, message, line):
        (tmp_path / "a.json").write_text(content)
        error = refusal(lambda: list(records_of(tmp_path / "a.json")))
        assert message in error.message
        assert (error.file, error.line) == (str(tmp_path / "a.json"), line)
        assert "one JSON array" in error.hint

    @pytest.mark.usefixtures("_pieces")
    def test_bytes_that_are_not_utf_8_in_an_array_are_refused_with_line_and_byte(self, tmp_path):
        (tmp_path / "a.json").write_bytes('[{"a": "中"},\n{"a": "'.encode() + b'\xd6\xd0"}]')
        error = refusal(lambda: list(records_of(tmp_path / "a.json")))
        assert error.line == 2
        assert "byte 22 " in error.message

    def test_an_array_without_elements_has_no_records(self, tmp_path):
        (tmp_path / "a.json").write_text(" [ ] \n")
        assert list(records_of(tmp_path / "a.json")) == []

    def test_a_record_above_the_limit_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr("herdsman_trainer.json_records.MAX_RECORD_BYTES", 1000)
        monkeypatch.setattr(compression, "CHUNK_BYTES", 64)
        (tmp_path / "a.json").write_text('[{"a": 1},\n{"a": "' + "x" * 2000 + '"}]')
        error = refusal(lambda: list(records_of(tmp_path / "a.json")))
        assert "longer than" in error.message
        assert error.line == 2


def test_a_file_without_read_permission_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path, {"a.txt": "x"}) / "a.txt"

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert "may not be read" in refusal(lambda: texts(path)).message
