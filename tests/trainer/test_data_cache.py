"""The token cache holds what the corpus says, is addressed by its content, and is never read half-written."""

import errno
import json
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pieces import small_pieces
from herdsman_trainer import content_cache
from herdsman_trainer.content_cache import build_or_open_entry, open_entry
from herdsman_trainer.corpora import find_text_files
from herdsman_trainer.data.datasets import dataset_at
from herdsman_trainer.errors import BadInput, Interrupted, Temporary
from herdsman_trainer.token_cache import build_or_open, open_tokens, token_cache_key
from herdsman_trainer.token_streams import CorpusOptions, starts_between, token_dtype
from herdsman_trainer.tokenizers import load_tokenizer
from tiny import ENGLISH, tiny_bpe_tokenizer, tiny_sentencepiece

LINES = [line for line in ENGLISH.splitlines() if line]


class CodePoints:
    """A tokenizer whose ids are the code points, so that expectations can be written down."""

    def __init__(self, vocab_size=0x110000, digest="d", bos_id=1, eos_id=2):
        self.vocab_size, self.digest, self.bos_id, self.eos_id, self.pad_id = vocab_size, digest, bos_id, eos_id, None

    def encode_flat(self, texts):
        texts = [text.decode() for text in texts]
        ids = [ord(character) for text in texts for character in text]
        return np.array(ids, np.int32), np.array([len(text) for text in texts], np.int64)


@pytest.fixture
def corpus(tmp_path):
    source = tmp_path / "corpus"
    source.mkdir()
    (source / "b.txt").write_text("\n".join(LINES[5:]))
    (source / "a.txt").write_text("\n\n".join(LINES[:5]))
    return source


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    return load_tokenizer(tiny_sentencepiece(tmp_path_factory.mktemp("tokenizer")))


def build(root, source, tokenizer, options, progress=None, workers=1):
    return build_or_open(root, [dataset_at(source, find_text_files)], tokenizer, options, progress, workers)


def document(tokenizer, text, bos=True, eos=True):
    return [*([tokenizer.bos_id] if bos else []), *tokenizer.encode(text), *([tokenizer.eos_id] if eos else [])]


class TestTokens:
    @pytest.mark.parametrize("bos", [True, False])
    @pytest.mark.parametrize("eos", [True, False])
    def test_documents_follow_one_another_with_bos_and_eos_as_asked(self, tmp_path, corpus, sentencepiece, bos, eos):
        cache = build(tmp_path / "cache", corpus, sentencepiece, CorpusOptions(add_bos=bos, add_eos=eos))
        expected = [index for line in LINES for index in document(sentencepiece, line, bos, eos)]
        assert cache.train.tolist() == expected
        assert cache.control_ids == {*([sentencepiece.bos_id] if bos else []), *([sentencepiece.eos_id] if eos else [])}
        assert len(cache.held_out) == 0

    @pytest.mark.parametrize("bos", [True, False])
    def test_documents_can_be_told_apart_with_or_without_control_tokens(self, tmp_path, corpus, sentencepiece, bos):
        options = CorpusOptions(add_bos=bos, held_out_fraction=0.3)
        with small_pieces(100):
            cache = build(tmp_path / "cache", corpus, sentencepiece, options)
        found = []
        for tokens, starts in ((cache.train, cache.document_starts), (cache.held_out, cache.held_out_starts)):
            assert isinstance(starts, np.memmap)
            assert starts[0] == 0
            found += [part.tolist() for part in np.split(tokens, starts[1:].astype(np.int64))]
        assert sorted(found) == sorted(document(sentencepiece, line, bos, eos=False) for line in LINES)

    def test_the_documents_of_a_block_are_found_without_reading_the_rest(self):
        starts = np.array([0, 3, 10, 12, 30], np.uint64)
        assert starts_between(starts, 0, 8).tolist() == [0, 3]
        assert starts_between(starts, 8, 16).tolist() == [2, 4]
        assert starts_between(starts, 10, 12).tolist() == [0]
        assert starts_between(starts, 13, 30).tolist() == []
        assert starts_between(np.empty(0, np.uint32), 0, 8).tolist() == []

    def test_both_sides_together_are_the_corpus_and_are_counted(self, tmp_path, corpus, sentencepiece):
        cache = build(tmp_path / "cache", corpus, sentencepiece, CorpusOptions(held_out_fraction=0.4))
        train, held_out = cache.train_counts, cache.held_out_counts
        assert train.documents + held_out.documents == len(LINES)
        assert train.characters + held_out.characters == sum(map(len, LINES))
        assert (train.tokens, held_out.tokens) == (len(cache.train), len(cache.held_out))
        assert 0 < held_out.documents < len(LINES)
        assert [(each.blank_lines, each.empty_texts) for each in cache.counts] == [(4, 0)]
        kept = sentencepiece.decode(cache.held_out.tolist())
        assert sum(line in kept for line in LINES) == held_out.documents

    def test_the_same_documents_are_held_out_whatever_the_tokenizer(self, tmp_path, corpus, sentencepiece):
        options = CorpusOptions(held_out_fraction=0.3)
        bpe = load_tokenizer(tiny_bpe_tokenizer(tmp_path / "bpe"))
        caches = [build(tmp_path / "cache", corpus, each, options) for each in (sentencepiece, bpe)]
        assert caches[0].held_out_counts.characters == caches[1].held_out_counts.characters
        assert caches[0].held_out_counts.tokens != caches[1].held_out_counts.tokens

    @pytest.mark.parametrize("fraction", [1e-9, 0.5])
    def test_two_documents_are_enough_for_two_sides(self, tmp_path, fraction):
        (tmp_path / "a.txt").write_text("one\ntwo\none\n")
        cache = build(tmp_path / "c", tmp_path / "a.txt", CodePoints(), CorpusOptions(held_out_fraction=fraction))
        assert {cache.train_counts.documents, cache.held_out_counts.documents} == {1, 2}

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.text(alphabet="ab中😀 ", max_size=40), min_size=1, max_size=30), st.booleans(), st.booleans())
    def test_batches_leave_no_trace_in_the_tokens(self, tmp_path_factory, lines, bos, eos):
        directory = tmp_path_factory.mktemp("corpus")
        text = "x" + "\n".join(lines)
        (directory / "a.txt").write_text(text, encoding="utf-8")
        expected = [
            index
            for line in text.split("\n")
            if line.strip()
            for index in [*([1] if bos else []), *map(ord, line), *([2] if eos else [])]
        ]
        options = CorpusOptions(add_bos=bos, add_eos=eos)
        with small_pieces(50):
            cache = build(directory / "cache", directory / "a.txt", CodePoints(), options)
        assert cache.train.tolist() == expected

    @pytest.mark.parametrize(("vocab_size", "width"), [(400, 2), (65_536, 2), (65_537, 4), (0x110000, 4)])
    def test_a_token_takes_two_bytes_up_to_65536_ids(self, tmp_path, vocab_size, width):
        (tmp_path / "a.txt").write_text("abc")
        cache = build(tmp_path / "cache", tmp_path / "a.txt", CodePoints(vocab_size), CorpusOptions())
        path = tmp_path / "cache" / cache.key / "train.bin"
        assert path.stat().st_size == 4 * width
        assert token_dtype(vocab_size).itemsize == width
        assert isinstance(cache.train, np.memmap)
        assert not cache.train.flags.writeable

    @pytest.mark.parametrize(("character", "text"), [("中", "th中ree"), ("中", "中three"), ("\uffff", "three\uffff")])
    def test_an_id_beyond_the_vocabulary_is_refused_with_the_id_and_the_place(self, tmp_path, character, text):
        (tmp_path / "a.txt").write_text(f"one\n\ntwo\n{text}\nfour\n", encoding="utf-8")
        with pytest.raises(BadInput) as caught:
            build(tmp_path / "cache", tmp_path / "a.txt", CodePoints(300), CorpusOptions())
        assert str(ord(character)) in caught.value.message
        assert "300 ids" in caught.value.message
        assert (caught.value.file, caught.value.line) == (str(tmp_path / "a.txt"), 4)

    def test_bos_of_a_tokenizer_without_bos_is_refused(self, tmp_path, corpus):
        with pytest.raises(BadInput, match="addBos"):
            build(tmp_path / "cache", corpus, CodePoints(bos_id=None), CorpusOptions(add_bos=True))

    def test_a_corpus_of_blank_lines_is_refused(self, tmp_path):
        (tmp_path / "a.txt").write_text("\n \n")
        with pytest.raises(BadInput, match="has no text: 1 file"):
            build(tmp_path / "cache", tmp_path / "a.txt", CodePoints(), CorpusOptions())


class TestKey:
    @pytest.fixture
    def key(self, corpus):
        def compute(tokenizer=None, files=None, **options):
            dataset = dataset_at(corpus, lambda source: files or find_text_files(source))
            return token_cache_key([dataset], tokenizer or CodePoints(), CorpusOptions(**options))

        return compute

    @pytest.mark.parametrize(
        "change",
        [
            {"separator": "BlankLine"},
            {"add_bos": False},
            {"add_eos": True},
            {"held_out_fraction": 0.1},
            {"tokenizer": CodePoints(digest="other")},
            {"tokenizer": CodePoints(vocab_size=70_000)},
            {"tokenizer": CodePoints(bos_id=7)},
            {"duplicates": "Drop"},
        ],
    )
    def test_each_option_changes_the_key(self, key, change):
        assert key(**change) != key()

    def test_each_content_and_name_changes_the_key_and_nothing_else_does(self, key, corpus):
        before = key()
        content = (corpus / "a.txt").read_bytes()
        (corpus / "a.txt").write_bytes(content + b"x")
        assert key() != before
        (corpus / "a.txt").write_bytes(content)
        os.utime(corpus / "a.txt", (1, 1))
        (corpus / "notes.md").write_text("not read")
        assert key() == before
        assert key(files=find_text_files(corpus)[::-1]) == before
        assert key(tokenizer=CodePoints(eos_id=9)) == before, "EOS is not added here"
        (corpus / "a.txt").rename(corpus / "c.txt")
        assert key() != before

    def test_the_place_of_the_corpus_does_not_change_the_key(self, key, corpus, tmp_path):
        before = key()
        moved = corpus.rename(tmp_path / "moved")
        assert token_cache_key([dataset_at(moved, find_text_files)], CodePoints(), CorpusOptions()) == before

    def test_two_corpora_whose_names_and_contents_only_together_are_equal_differ(self, tmp_path):
        keys = set()
        for name, files in {"x": {"a.txt": "1", "b.txt": "2"}, "y": {"a.txt": "2", "b.txt": "1"}}.items():
            (tmp_path / name).mkdir()
            for file, content in files.items():
                (tmp_path / name / file).write_text(content)
            dataset = dataset_at(tmp_path / name, find_text_files)
            keys.add(token_cache_key([dataset], CodePoints(), CorpusOptions()))
        assert len(keys) == 2


class TestOpening:
    def test_the_second_time_nothing_is_tokenised_and_other_processes_open_it_by_key(self, tmp_path, corpus):
        root = tmp_path / "cache"
        first = build(root, corpus, CodePoints(), CorpusOptions())

        class Unused(CodePoints):
            def encode_flat(self, texts):
                raise AssertionError("tokenised again")

        second = build(root, corpus, Unused(), CorpusOptions())
        third = open_tokens(root, first.key)
        assert first.key == second.key
        assert first.train.tolist() == second.train.tolist() == third.train.tolist()
        assert first.train_counts == second.train_counts == third.train_counts

    @pytest.mark.parametrize("name", ["train.bin", "heldout.bin", "train.bin.starts", "meta.json"])
    @pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
    def test_a_damaged_cache_is_rebuilt(self, tmp_path, corpus, name, damage):
        options = CorpusOptions(held_out_fraction=0.4)
        root = tmp_path / "cache"
        first = build(root, corpus, CodePoints(), options)
        expected = first.train.tolist(), first.held_out.tolist()
        path = root / first.key / name
        content = bytearray(path.read_bytes())
        path.unlink()
        if damage == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif damage == "flipped":
            content[-20] ^= 1
            path.write_bytes(content)
        again = build(root, corpus, CodePoints(), options)
        assert (again.train.tolist(), again.held_out.tolist()) == expected
        assert [entry.name for entry in root.iterdir()] == [first.key]

    def test_a_cache_that_nobody_built_is_a_temporary_fault(self, tmp_path):
        with pytest.raises(Temporary, match="no token cache"):
            open_tokens(tmp_path, "0" * 64)

    def test_progress_rises_to_the_bytes_of_the_corpus_and_may_stop_the_building(self, tmp_path, corpus):
        seen = []
        with small_pieces(100):
            build(tmp_path / "c", corpus, CodePoints(), CorpusOptions(), lambda *counts: seen.append(counts))
        assert len(seen) > 4
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert {total for _, total in seen} == {sum(path.stat().st_size for path in corpus.iterdir())}
        assert 0 < seen[-1][0] <= seen[-1][1]

        def stop(*_):
            raise Interrupted("asked to stop")

        with pytest.raises(Interrupted):
            build(tmp_path / "d", corpus, CodePoints(), CorpusOptions(), stop)
        assert [path.suffix for path in (tmp_path / "d").iterdir()] == [".growing"], "the next attempt goes on with it"

    def test_a_file_that_changes_while_it_is_read_gives_no_cache(self, tmp_path, corpus):
        class Writer(CodePoints):
            def encode_flat(self, texts):
                (corpus / "b.txt").write_text("changed")
                return super().encode_flat(texts)

        with pytest.raises(Temporary, match="changed while it was read"):
            build(tmp_path / "cache", corpus, Writer(), CorpusOptions())
        assert list((tmp_path / "cache").glob("[!.]*")) == []
        assert list((tmp_path / "cache").rglob("*journal*")) == [], "nobody goes on with it"


class TestDirectories:
    """Any content-addressed entry."""

    @staticmethod
    def build(directory):
        (directory / "data").write_bytes(b"content")
        return {"fact": 1}

    def test_of_many_concurrent_writers_all_get_one_sound_entry(self, tmp_path):
        barrier = threading.Barrier(4)
        entries = []

        def build(directory):
            barrier.wait(10)
            return self.build(directory)

        threads = [
            threading.Thread(target=lambda: entries.append(build_or_open_entry(tmp_path, "key", build)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [entry.facts for entry in entries] == [{"fact": 1}] * 4
        assert [path.name for path in tmp_path.iterdir()] == ["key"]

    def test_an_entry_is_invisible_until_it_is_complete(self, tmp_path):
        def build(directory):
            assert open_entry(tmp_path, "key", check_content=True) is None
            return self.build(directory)

        assert build_or_open_entry(tmp_path, "key", build).facts == {"fact": 1}

    def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(self, tmp_path):
        dead, starting = tmp_path / ".dead.tmp", tmp_path / ".starting.tmp"
        dead.mkdir()
        (dead / ".lock").touch()
        starting.mkdir()

        def build_inside(directory):
            build_or_open_entry(tmp_path, "other", self.build)
            assert directory.is_dir()
            return self.build(directory)

        build_or_open_entry(tmp_path, "key", build_inside)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".starting.tmp", "key", "other"]

    def test_an_entry_under_another_key_is_not_taken(self, tmp_path):
        build_or_open_entry(tmp_path, "key", self.build)
        (tmp_path / "key").rename(tmp_path / "other")
        assert open_entry(tmp_path, "other", check_content=False) is None

    def test_facts_changed_by_hand_are_noticed(self, tmp_path):
        entry = build_or_open_entry(tmp_path, "key", self.build)
        meta = json.loads((entry.directory / "meta.json").read_text())
        meta["facts"]["fact"] = 2
        (entry.directory / "meta.json").write_text(json.dumps(meta))
        assert open_entry(tmp_path, "key", check_content=False) is None

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    def test_a_full_disk_is_named_and_leaves_nothing_behind(self, tmp_path, number):
        def build(directory):
            self.build(directory)
            raise OSError(number, "no space")

        with pytest.raises(Temporary) as caught:
            build_or_open_entry(tmp_path, "key", build)
        assert caught.value.reason == "DiskFull"
        assert "volume" in caught.value.hint
        assert list(tmp_path.iterdir()) == []

    def test_files_are_flushed_before_the_directory_gets_its_name(self, tmp_path, monkeypatch):
        flushed = []

        def flush(path):
            flushed.append((path.name, (tmp_path / "key").exists()))

        monkeypatch.setattr(content_cache, "fsync", flush)
        build_or_open_entry(tmp_path, "key", self.build)
        names = [name for name, _ in flushed]
        assert names[:2] == ["data", "meta.json"]
        assert names[2].endswith(".tmp")
        assert flushed[3] == (tmp_path.name, True)
        assert not any(published for _, published in flushed[:3])
