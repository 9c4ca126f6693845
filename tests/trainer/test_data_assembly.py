"""However a corpus is read, by how many processes, killed how often, beside which others: its tokens are the same."""

import json
import os
import signal

import numpy as np
import pytest

from data_pieces import small_pieces
from herdsman_trainer import token_cache
from herdsman_trainer.corpora import find_text_files
from herdsman_trainer.corpus_encoding import CorpusEncoder
from herdsman_trainer.data import assembly
from herdsman_trainer.data.datasets import dataset_at
from herdsman_trainer.errors import BadInput, Interrupted
from herdsman_trainer.instruction_cache import build_or_open_instructions
from herdsman_trainer.instruction_files import find_instruction_files
from herdsman_trainer.instructions import InstructionOptions
from herdsman_trainer.prompts import TEMPLATES
from herdsman_trainer.token_cache import build_or_open
from herdsman_trainer.token_streams import CorpusOptions
from herdsman_trainer.tokenizers import load_tokenizer
from ranks import in_child
from tiny import CHINESE, ENGLISH, tiny_bpe_tokenizer, tiny_sentencepiece

LINES = [line for line in (ENGLISH + CHINESE).splitlines() if line]
OPTIONS = CorpusOptions(add_eos=True, held_out_fraction=0.3)
CORPUS = [
    "train.bin",
    "heldout.bin",
    "train.bin.starts",
    "heldout.bin.starts",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_sentencepiece(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def corpus(tmp_path):
    source = tmp_path / "corpus"
    source.mkdir()
    (source / "a.txt").write_text("\n".join(f"{n} {line}" for n in range(6) for line in LINES))
    (source / "b.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in LINES))
    (source / "c.txt").write_text("\n\n".join(LINES))
    return source


def datasets(*sources):
    return [dataset_at(source, find_text_files, field=f"spec.datasets[{n}]") for n, source in enumerate(sources)]


def build(root, sources, tokenizer, options=OPTIONS, size=400, workers=1, progress=None):
    with small_pieces(size):
        return build_or_open(root, datasets(*sources), tokenizer, options, progress, workers)


def content(root, cache):
    return {name: (root / cache.key / name).read_bytes() for name in CORPUS}


def documents(tokens, starts):
    return [part.tolist() for part in np.split(tokens, starts[1:].astype(np.int64))] if len(tokens) else []


@pytest.mark.parametrize("make", [tiny_sentencepiece, tiny_bpe_tokenizer])
def test_any_number_of_workers_and_pieces_of_any_size_give_the_same_bytes(tmp_path, corpus, make):
    tokenizer = load_tokenizer(make(tmp_path / "tok"))
    expected = None
    for name, size, workers in (("one", 10**6, 1), ("small", 300, 1), ("two", 300, 2), ("three", 500, 3)):
        root = tmp_path / name
        found = content(root, build(root, [corpus], tokenizer, size=size, workers=workers))
        expected = expected or found
        assert found == expected, name
    assert len(expected["train.bin"]) > len(expected["heldout.bin"]) > 0


def test_the_first_bad_line_is_named_whatever_the_number_of_workers(tmp_path, corpus, tokenizer):
    lines = (corpus / "a.txt").read_bytes().split(b"\n")
    lines[30] += b"\xff"
    lines[90] += b"\xff"
    (corpus / "a.txt").write_bytes(b"\n".join(lines))
    for workers in (1, 2):
        with pytest.raises(BadInput) as caught:
            build(tmp_path / "cache", [corpus], tokenizer, workers=workers)
        assert (caught.value.file, caught.value.line) == (str(corpus / "a.txt"), 31)
    assert list((tmp_path / "cache").iterdir()) == []


class TestResuming:
    @pytest.fixture
    def encoded(self, monkeypatch):
        """The pieces that are encoded in this process."""
        seen = []
        original = CorpusEncoder.__call__

        def call(self, piece):
            seen.append(piece)
            return original(self, piece)

        monkeypatch.setattr(CorpusEncoder, "__call__", call)
        return seen

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_killed_build_goes_on_behind_the_last_piece_on_record(
        self, tmp_path, corpus, tokenizer, encoded, workers
    ):
        straight = content(tmp_path / "straight", build(tmp_path / "straight", [corpus, corpus], tokenizer))
        pieces = len(encoded)
        assert pieces > 20
        root, done = tmp_path / "killed", iter(range(10**6))

        def killed():
            assembly.SAVE_SECONDS = 0

            def progress(*_):
                if next(done) == pieces * 2 // 3:
                    os.kill(os.getpid(), signal.SIGKILL)

            build(root, [corpus, corpus], tokenizer, progress=progress, workers=workers)

        assert in_child(killed) == -signal.SIGKILL
        encoded.clear()
        assert content(root, build(root, [corpus, corpus], tokenizer)) == straight
        assert 0 < len(encoded) < pieces * 2 // 3
        assert [entry.name for entry in root.iterdir() if entry.name.startswith(".")] == []

    def test_a_stopped_build_loses_nothing(self, tmp_path, corpus, tokenizer, encoded):
        straight = content(tmp_path / "straight", build(tmp_path / "straight", [corpus], tokenizer))
        pieces = len(encoded)
        encoded.clear()
        done = iter(range(10**6))

        def stop(*_):
            if next(done) % 3 == 2:
                raise Interrupted("asked to stop")

        root = tmp_path / "stopped"
        for _ in range(pieces):
            try:
                cache = build(root, [corpus], tokenizer, progress=stop)
                break
            except Interrupted:
                continue
        assert content(root, cache) == straight
        assert len(encoded) == pieces, "every piece once"

    def test_a_build_that_was_killed_at_its_very_end_encodes_nothing_again(
        self, tmp_path, corpus, tokenizer, encoded, monkeypatch
    ):
        monkeypatch.setattr(token_cache, "write_starts", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(tmp_path / "cache", [corpus], tokenizer)
        monkeypatch.undo()
        monkeypatch.setattr(CorpusEncoder, "__call__", None)
        cache = build(tmp_path / "cache", [corpus], tokenizer)
        assert cache.train_counts.documents + cache.held_out_counts.documents == 8 * len(LINES)

    @pytest.mark.parametrize("damage", ["cut", "no journal", "journal of another"])
    def test_what_cannot_be_gone_on_with_is_begun_anew(self, tmp_path, corpus, tokenizer, damage):
        straight = content(tmp_path / "straight", build(tmp_path / "straight", [corpus], tokenizer))
        done = iter(range(10**6))

        def stop(*_):
            if next(done) == 5:
                raise Interrupted("asked to stop")

        root = tmp_path / "cache"
        with pytest.raises(Interrupted):
            build(root, [corpus], tokenizer, progress=stop)
        (left,) = root.iterdir()
        if damage == "cut":
            (left / "train.bin").write_bytes(b"x")
        elif damage == "no journal":
            (left / ".journal.json").write_text("{")
        else:
            journal = json.loads((left / ".journal.json").read_text())
            (left / ".journal.json").write_text(json.dumps({**journal, "header": {"threshold": 1}}))
        assert content(root, build(root, [corpus], tokenizer)) == straight

    def test_work_on_another_dataset_is_not_gone_on_with_and_goes(self, tmp_path, corpus, tokenizer):
        def stop(*_):
            raise Interrupted("asked to stop")

        root = tmp_path / "cache"
        with pytest.raises(Interrupted):
            build(root, [corpus], tokenizer, progress=stop)
        (corpus / "a.txt").write_text("changed\nmeanwhile")
        cache = build(root, [corpus], tokenizer)
        assert [entry.name for entry in root.iterdir()] == [cache.key]


class TestDuplicates:
    @pytest.fixture
    def twice(self, tmp_path):
        source = tmp_path / "twice"
        source.mkdir()
        (source / "a.txt").write_text("one\ntwo\none\n  one  \nthree\n")
        (source / "b.jsonl").write_text('{"text": "two"}\n{"text": "four"}\n')
        return source

    def test_they_are_counted_and_kept_unless_they_are_to_be_dropped(self, tmp_path, twice, tokenizer):
        kept = build(tmp_path / "c", [twice], tokenizer, CorpusOptions(), size=6)
        assert [each.duplicates for each in kept.counts] == [3]
        assert (kept.train_counts.documents, kept.counts[0].dropped_duplicates) == (7, 0)
        dropped = build(tmp_path / "c", [twice], tokenizer, CorpusOptions(duplicates="Drop"), size=6)
        assert dropped.counts[0].dropped_duplicates == dropped.counts[0].duplicates == 3
        found = documents(dropped.train, dropped.document_starts)
        assert [tokenizer.decode(ids) for ids in found] == ["one", "two", "three", "four"]
        assert dropped.key != kept.key

    @pytest.mark.parametrize("workers", [1, 2])
    def test_they_are_found_across_datasets_and_sides_and_restarts(self, tmp_path, corpus, twice, tokenizer, workers):
        options = CorpusOptions(duplicates="Drop", held_out_fraction=0.3)
        done = iter(range(10**6))

        def stop(*_):
            if next(done) == 12:
                raise Interrupted("asked to stop")

        with pytest.raises(Interrupted):
            build(tmp_path / "c", [corpus, twice, corpus], tokenizer, options, progress=stop, workers=workers)
        cache = build(tmp_path / "c", [corpus, twice, corpus], tokenizer, options, workers=workers)
        first, second, third = cache.counts
        assert [each.train.documents + each.held_out.documents for each in (first, second, third)] == [
            7 * len(LINES),
            4,
            0,
        ]
        assert third.dropped_duplicates == 8 * len(LINES)
        both = documents(cache.train, cache.document_starts) + documents(cache.held_out, cache.held_out_starts)
        assert len({tuple(ids) for ids in both}) == len(both)


class TestSeveralDatasets:
    def test_they_lie_one_behind_the_other_and_the_same_text_is_on_the_same_side(self, tmp_path, corpus, tokenizer):
        other = tmp_path / "other"
        other.mkdir()
        (other / "a.txt").write_text("\n".join(LINES[::-1]))
        cache = build(tmp_path / "c", [corpus, other], tokenizer)
        alone = build(tmp_path / "c", [corpus], tokenizer)
        begin, middle, end = cache.bounds
        assert (begin, middle, end) == (0, len(alone.train), len(cache.train))
        assert cache.train[:middle].tolist() == alone.train.tolist()
        assert int(cache.document_starts[cache.counts[0].train.documents]) == middle
        train, held_out = (
            {tuple(ids) for ids in documents(*side)}
            for side in ((cache.train, cache.document_starts), (cache.held_out, cache.held_out_starts))
        )
        assert not train & held_out
        assert sum(each.held_out.documents for each in cache.counts) == cache.held_out_counts.documents

    def test_their_order_is_part_of_the_key_and_their_place_is_not(self, tmp_path, corpus, tokenizer):
        other = tmp_path / "other"
        other.mkdir()
        (other / "a.txt").write_text("other")
        keys = [
            token_cache.token_cache_key(datasets(*sources), tokenizer, OPTIONS)
            for sources in ((corpus, other), (other, corpus), (corpus,))
        ]
        assert len(set(keys)) == 3
        moved = other.rename(tmp_path / "moved")
        assert token_cache.token_cache_key(datasets(corpus, moved), tokenizer, OPTIONS) == keys[0]


class TestRecords:
    @pytest.fixture
    def source(self, tmp_path):
        source = tmp_path / "records"
        source.mkdir()
        values = [{"instruction": f"Say {n % 17}.", "output": LINES[n % 5]} for n in range(60)]
        values[7]["output"] = ""
        (source / "a.jsonl").write_text("\n".join(map(json.dumps, values[:30])))
        (source / "b.json").write_text(json.dumps(values[30:], indent=1))
        return source

    @staticmethod
    def build(root, sources, tokenizer, duplicates="Keep", workers=1, progress=None):
        found = [dataset_at(source, find_instruction_files) for source in sources]
        options = InstructionOptions(TEMPLATES["alpaca"], 128, duplicates=duplicates)
        with small_pieces(300):
            return build_or_open_instructions(root, found, tokenizer, options, progress, workers)

    @staticmethod
    def samples(found):
        return [(found.sample(n)[0].tolist(), found.sample(n)[1]) for n in range(len(found))]

    def test_workers_kills_and_pieces_change_nothing(self, tmp_path, source, tokenizer):
        straight = self.build(tmp_path / "one", [source, source], tokenizer)
        two = self.build(tmp_path / "two", [source, source], tokenizer, workers=2)
        done = iter(range(10**6))

        def stop(*_):
            if next(done) % 4 == 3:
                raise Interrupted("asked to stop")

        for _ in range(100):
            try:
                again = self.build(tmp_path / "three", [source, source], tokenizer, progress=stop)
                break
            except Interrupted:
                continue
        assert self.samples(straight) == self.samples(two) == self.samples(again)
        assert straight.counts_of == two.counts_of == again.counts_of
        assert straight.bounds == (0, 59, 118)
        assert (straight.counts.read, straight.counts.dropped_empty_output) == (120, 2)
        assert straight.counts.tokens == len(straight.ids)

    def test_the_same_question_with_the_same_answer_is_a_duplicate(self, tmp_path, source, tokenizer):
        kept, dropped = (self.build(tmp_path / "c", [source, source], tokenizer, how) for how in ("Keep", "Drop"))
        distinct = {(f"{n % 17}", n % 5) for n in range(60) if n != 7}
        assert kept.counts.duplicates == dropped.counts.dropped_duplicate == 118 - len(distinct)
        assert (len(kept), len(dropped)) == (118, len(distinct))
        assert dropped.counts.tokens == len(dropped.ids) < len(kept.ids)
        assert dropped.bounds == (0, len(distinct), len(distinct))

    def test_a_split_keeps_the_datasets_apart(self, tmp_path, source, tokenizer):
        whole = self.build(tmp_path / "c", [source, source], tokenizer)
        train, held_out = whole.split(0.3)
        assert train.bounds[1] + held_out.bounds[1] == 59
        assert train.bounds[2] == len(train)
        assert held_out.bounds[2] == len(held_out) > 0
