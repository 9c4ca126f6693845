"""Instruction records become prompt and answer ids; what cannot be learnt from is dropped and counted."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herdsman_trainer.batches import IGNORED, TrainingStream
from herdsman_trainer.data.datasets import dataset_at
from herdsman_trainer.errors import BadInput, Temporary
from herdsman_trainer.instruction_cache import (
    build_or_open_instructions,
    instruction_cache_key,
    open_instructions,
)
from herdsman_trainer.instruction_files import InstructionRecord, find_instruction_files, read_instructions
from herdsman_trainer.instruction_set import InstructionCounts
from herdsman_trainer.instructions import InstructionOptions, encode_records
from herdsman_trainer.prompts import TEMPLATES
from herdsman_trainer.sequence_order import GlobalBatch
from herdsman_trainer.tokenizers import load_tokenizer
from tiny import tiny_bpe_tokenizer, tiny_chatml_tokenizer, tiny_sentencepiece

ALPACA = TEMPLATES["alpaca"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_sentencepiece(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    return load_tokenizer(tiny_bpe_tokenizer(tmp_path_factory.mktemp("bpe")))


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    return load_tokenizer(tiny_chatml_tokenizer(tmp_path_factory.mktemp("chatml")))


def records(*pairs):
    return [InstructionRecord(prompt, output, "a.json", n, n) for n, (prompt, output) in enumerate(pairs, start=1)]


def dump(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1))
    return path


def encode(given, tokenizer, template, max_length, overlong, system=None):
    return encode_records(given, tokenizer, InstructionOptions(template, max_length, overlong, system))


def dataset_of(source):
    return [dataset_at(source, find_instruction_files)]


def build(root, source, tokenizer, template, max_length, overlong, workers=1):
    options = InstructionOptions(template, max_length, overlong)
    return build_or_open_instructions(root, dataset_of(source), tokenizer, options, workers=workers)


def refusal(action):
    with pytest.raises(BadInput) as caught:
        action()
    return caught.value


class TestReading:
    @pytest.mark.parametrize(
        ("value", "prompt"),
        [
            ({"instruction": "Add.", "input": "1 2", "output": "3"}, "Add.\n1 2"),
            ({"instruction": "Add.", "input": "", "output": "3"}, "Add."),
            ({"instruction": "Add.", "input": None, "output": "3"}, "Add."),
            ({"instruction": "Add.", "output": "3", "id": 7, "history": []}, "Add."),
            ({"instruction": "Say {instruction}.", "input": "{x}", "output": "3"}, "Say {instruction}.\n{x}"),
        ],
    )
    def test_the_input_follows_the_instruction_where_there_is_one(self, tmp_path, value, prompt):
        path = dump(tmp_path / "a.json", [value])
        assert [(r.prompt, r.output) for r in read_instructions([path])] == [(prompt, "3")]

    def test_arrays_and_lines_of_all_files_are_read_in_order(self, tmp_path):
        one, two, three = ({"instruction": name, "output": "x"} for name in "123")
        dump(tmp_path / "b.json", [two, three])
        (tmp_path / "a.jsonl").write_text(f"\n{json.dumps(one)}\n")
        (tmp_path / "herdsman-artifact.json").write_text("{}")
        found = list(read_instructions(find_instruction_files(tmp_path)))
        assert [(r.prompt, r.file.name, r.number, r.line) for r in found] == [
            ("1", "a.jsonl", 2, 2),
            ("2", "b.json", 1, 2),
            ("3", "b.json", 2, 6),
        ]

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"instruction": "x", "input": ""}, 'Record 2: no key "output" (its keys: input, instruction)'),
            ({"output": "x"}, 'Record 2: no key "instruction"'),
            ({"instruction": "x", "output": 3}, 'Record 2: the key "output" is a number, not a string'),
            ({"instruction": ["x"], "output": "x"}, 'Record 2: the key "instruction" is an array, not a string'),
            ({"instruction": "x", "input": {}, "output": "x"}, 'Record 2: the key "input" is an object, not a string'),
            ({"instruction": "x", "output": None}, 'Record 2: the key "output" is null, not a string'),
            ({"instruction": "x", "output": "\ud83d"}, 'The "output" of record 2 holds half of a surrogate pair'),
            ("text", "Record 2 is not a JSON object"),
        ],
    )
    def test_a_wrong_record_is_refused_with_its_file_number_and_line(self, tmp_path, value, message):
        path = tmp_path / "a.json"
        path.write_text(f"[{json.dumps({'instruction': 'x', 'output': 'y'})},\n{json.dumps(value)}]")
        error = refusal(lambda: list(read_instructions([path])))
        assert message in error.message
        assert (error.file, error.line) == (str(path), 2)
        assert error.hint

    def test_an_empty_directory_is_refused(self, tmp_path):
        error = refusal(lambda: find_instruction_files(tmp_path))
        assert "no *.json, *.jsonl or *.parquet file; it is empty" in error.message


class TestEncoding:
    @pytest.mark.parametrize("name", TEMPLATES)
    def test_a_sample_is_the_source_and_the_target_of_the_template(self, tokenizer, bpe, chatml, name):
        tok = {"llama-3": bpe, "chatml": chatml}.get(name, tokenizer)
        template = TEMPLATES[name]
        samples = encode(records(("Why?", "Because."), ("Add.\n1", "2")), tok, template, 512, "Fail", "Be brief.")
        ids, source = samples.sample(0)
        assert ids[:source].tolist() == template.source_ids(tok, "Why?", "Be brief.")
        assert ids[source:].tolist() == template.target_ids(tok, "Because.")
        assert samples.sample(1)[0].tolist()[-1] in template.stop_ids(tok)
        assert samples.counts == InstructionCounts(read=2, kept=2)
        assert samples.characters.tolist() == [8, 1]

    def test_truncate_keeps_the_front_and_cuts_the_answer_with_its_end(self, tokenizer):
        pair = ("Why?", "The river rises in the hills and reaches the sea.")
        whole, source = encode(records(pair), tokenizer, ALPACA, 512, "Fail").sample(0)
        assert whole[-1] == tokenizer.eos_id
        samples = encode(records(pair), tokenizer, ALPACA, len(whole) - 1, "Truncate")
        ids, cut_source = samples.sample(0)
        assert ids.tolist() == whole[:-1].tolist()
        assert cut_source == source
        assert samples.counts == InstructionCounts(read=1, kept=1, truncated=1)
        assert samples.characters.tolist() == [len(pair[1])]
        shorter = encode(records(pair), tokenizer, ALPACA, source + 3, "Truncate")
        assert shorter.sample(0)[0].tolist() == whole[: source + 3].tolist()
        assert 0 < shorter.characters[0] < len(pair[1])

    def test_a_sample_of_just_the_length_is_not_touched_by_any_policy(self, tokenizer):
        pair = ("Why?", "Because.")
        length = len(encode(records(pair), tokenizer, ALPACA, 512, "Fail").ids)
        for policy in ("Truncate", "Drop", "Fail"):
            samples = encode(records(pair), tokenizer, ALPACA, length, policy)
            assert samples.counts == InstructionCounts(read=1, kept=1)
            assert samples.ids[-1] == tokenizer.eos_id

    def test_drop_leaves_long_samples_out(self, tokenizer):
        long = ("Why?", "because " * 100)
        samples = encode(records(("Why?", "So."), long), tokenizer, ALPACA, 128, "Drop")
        assert samples.counts == InstructionCounts(read=2, kept=1, dropped_overlong=1)

    def test_fail_names_the_first_long_record_and_its_lengths(self, tokenizer):
        long = ("Why?", "because " * 100)
        error = refusal(lambda: encode(records(("Why?", "So."), long), tokenizer, ALPACA, 128, "Fail"))
        source, target = len(ALPACA.source_ids(tokenizer, "Why?")), len(ALPACA.target_ids(tokenizer, long[1]))
        assert f"Record 2 has {source + target} tokens (prompt {source}, answer {target})" in error.message
        assert (error.file, error.line) == ("a.json", 2)
        assert "maxLength" in error.hint

    def test_samples_without_a_target_are_dropped_and_counted(self, tokenizer):
        given_records = records(("Why?", "So."), ("Why?", ""), ("Why?", " \n"), ("why " * 200, "So."), ("  ", "So."))
        samples = encode(given_records, tokenizer, ALPACA, 128, "Truncate")
        assert samples.counts == InstructionCounts(
            read=5, kept=1, dropped_empty_instruction=1, dropped_empty_output=2, dropped_prompt_too_long=1
        )
        assert samples.counts.dropped_no_target == 3
        assert samples.counts.dropped == 4
        assert (samples.source_lengths < samples.lengths).all()

    @pytest.mark.parametrize(("room", "kept"), [(-1, 1), (0, 1), (1, 2)])
    def test_a_prompt_that_fills_the_length_leaves_no_target(self, tokenizer, room, kept):
        long = "Why do the farmers share the water?"
        length = len(ALPACA.source_ids(tokenizer, long)) + room
        samples = encode(records(("?", "So."), (long, "So.")), tokenizer, ALPACA, length, "Truncate")
        assert samples.counts.kept == kept
        assert samples.counts.dropped_prompt_too_long == 2 - kept

    @pytest.mark.parametrize(
        ("pairs", "message"),
        [
            ([], "hold no records"),
            ([("Why?", ""), ("why " * 200, "So.")], "1 dropped empty output, 1 dropped prompt too long"),
        ],
    )
    def test_nothing_left_is_refused_with_the_counts(self, tokenizer, pairs, message):
        error = refusal(lambda: encode(records(*pairs), tokenizer, ALPACA, 128, "Truncate"))
        assert message in error.message
        assert error.hint

    @pytest.mark.parametrize(("dropped", "warns"), [(0, False), (2, False), (3, True)])
    def test_more_than_a_fifth_dropped_or_cut_is_a_warning(self, tokenizer, dropped, warns):
        pairs = [("Why?", "")] * dropped + [("Why?", "So.")] * (10 - dropped)
        counts = encode(records(*pairs), tokenizer, ALPACA, 512, "Truncate").counts
        assert bool(counts.warning) == warns
        assert not warns or counts.warning == "3 of 10 records were dropped or cut: 3 dropped empty output."

    def test_an_id_beyond_the_vocabulary_is_refused(self, tokenizer):
        class Wrong:
            vocab_size, bos_id, eos_id, pad_id, digest = 100, 1, 2, None, "d"

            def encode(self, text):
                return [5, 100]

        error = refusal(lambda: encode(records(("Why?", "So.")), Wrong(), ALPACA, 512, "Fail"))
        assert "id 100 of record 1" in error.message
        assert error.line == 1

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(st.tuples(st.text("ab ", max_size=30), st.text("ab ", max_size=60)), min_size=1, max_size=12),
        st.integers(90, 160),
        st.sampled_from(["Truncate", "Drop"]),
    )
    def test_every_record_is_accounted_for_and_no_sample_is_too_long(self, tokenizer, pairs, max_length, policy):
        samples = encode(records(("Why?", "So."), *pairs), tokenizer, ALPACA, 400, policy)
        assert samples.counts.read == len(pairs) + 1
        assert len(samples) == samples.counts.kept == samples.counts.read - samples.counts.dropped
        try:
            samples = encode(records(*pairs), tokenizer, ALPACA, max_length, policy)
        except BadInput as error:
            assert "No sample is left" in error.message  # noqa: PT017 - either outcome is right
            return
        assert (samples.lengths <= max_length).all()
        assert (samples.lengths > samples.source_lengths).all()
        complete = [samples.sample(i)[0][-1] == tokenizer.eos_id for i in range(len(samples))]
        assert complete.count(False) == samples.counts.truncated


class TestBatches:
    @pytest.fixture(scope="class")
    def samples(self, tokenizer):
        return encode(records(*((f"{n}?", "so " * n) for n in range(1, 21))), tokenizer, ALPACA, 512, "Fail")

    def test_only_answers_have_labels_and_their_ends_are_no_text(self, samples, tokenizer):
        batch = samples.collate(np.array([3, 0, -1]))
        for row, index in enumerate((3, 0)):
            ids, source = samples.sample(index)
            assert batch.input_ids[row, : len(ids)].tolist() == ids.tolist()
            assert batch.labels[row][batch.labels[row] != IGNORED].tolist() == ids[source:].tolist()
            assert batch.labels[row][batch.text_targets[row]].tolist() == ids[source:-1].tolist()
            assert batch.attention_mask[row].sum() == len(ids)
        assert batch.targets == samples.targets(np.array([3, 0, -1]))
        assert (batch.labels[2] == IGNORED).all()

    def test_without_a_pad_token_eos_pads_and_stays_a_target_where_it_is_text(self, samples, tokenizer):
        assert tokenizer.pad_id is None
        assert samples.pad_id == tokenizer.eos_id
        batch = samples.collate(np.array([0, 9]))
        assert (batch.labels == tokenizer.eos_id).sum() == 2

    @pytest.mark.parametrize("world_size", [1, 2, 4])
    def test_one_process_and_many_consume_the_same_samples(self, samples, world_size):
        stream = TrainingStream(samples, GlobalBatch(8, 8 // world_size // 2, world_size), seed=3)

        def consumed(step):
            batches = [batch for rank in range(world_size) for batch in stream.micro_batches(step, rank)]
            rows = [
                ids[mask == 1].tolist()
                for b in batches
                for ids, mask in zip(b.input_ids, b.attention_mask, strict=True)
            ]
            assert sum(batch.targets for batch in batches) == stream.targets(step)
            return sorted(rows)

        alone = TrainingStream(samples, GlobalBatch(8, 8), seed=3)
        for step in range(4):
            (batch,) = alone.micro_batches(step)
            expected = [
                ids[mask == 1].tolist() for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
            ]
            assert consumed(step) == sorted(expected)


class TestSplit:
    def test_the_same_question_is_never_on_both_sides(self, tokenizer):
        pairs = [(f"Question {n % 10}?", f"Answer {n}.") for n in range(40)]
        samples = encode(records(*pairs), tokenizer, ALPACA, 512, "Fail")
        train, held_out = samples.split(0.3)
        assert len(train) + len(held_out) == 40
        assert len(held_out) % 4 == 0
        assert 0 < len(held_out) < 40
        assert not set(train.hashes.tolist()) & set(held_out.hashes.tolist())
        again = encode(records(*pairs[::-1]), tokenizer, ALPACA, 512, "Fail").split(0.3)[1]
        assert set(again.hashes.tolist()) == set(held_out.hashes.tolist())

    def test_a_subset_collates_its_own_samples(self, tokenizer):
        samples = encode(records(("1?", "one"), ("2?", "two"), ("3?", "three")), tokenizer, ALPACA, 512, "Fail")
        part = samples.subset(np.array([False, True, True]))
        assert len(part) == 2
        assert part.sample(1)[0].tolist() == samples.sample(2)[0].tolist()

    def test_nothing_is_held_out_of_one_question_or_with_a_fraction_of_zero(self, tokenizer):
        one = encode(records(("1?", "a"), ("1?", "b")), tokenizer, ALPACA, 512, "Fail")
        assert [len(side) for side in one.split(0.5)] == [2, 0]
        two = encode(records(("1?", "a"), ("2?", "b")), tokenizer, ALPACA, 512, "Fail")
        assert [len(side) for side in two.split(0)] == [2, 0]
        assert [len(side) for side in two.split(1e-9)] == [1, 1]


class TestCache:
    @pytest.fixture
    def source(self, tmp_path):
        values = [{"instruction": f"{n}?", "output": "so " * n} for n in range(20)]
        return dump(tmp_path / "data" / "a.json", values).parent

    def test_the_second_time_and_other_processes_get_the_same_samples(self, tmp_path, source, tokenizer):
        root = tmp_path / "cache"
        encoded = encode(read_instructions([source / "a.json"]), tokenizer, ALPACA, 128, "Truncate")
        first = build(root, source, tokenizer, ALPACA, 128, "Truncate")
        second = build(root, source, tokenizer, ALPACA, 128, "Truncate")
        for each in (first, second, open_instructions(root, first.key)):
            assert [each.sample(i)[0].tolist() for i in range(len(each))] == [
                encoded.sample(i)[0].tolist() for i in range(len(encoded))
            ]
            assert (each.counts.read, each.counts.kept, each.counts.tokens) == (20, 19, len(each.ids))
            assert (each.pad_id, each.control_ids) == (encoded.pad_id, encoded.control_ids)
            assert (each.hashes == encoded.hashes).all()
        assert isinstance(first.ids, np.memmap)

    def test_a_damaged_cache_is_rebuilt(self, tmp_path, source, tokenizer):
        first = build(tmp_path / "cache", source, tokenizer, ALPACA, 128, "Truncate")
        expected = first.ids.tolist()
        path = tmp_path / "cache" / first.key / "ids"
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-4])
        again = build(tmp_path / "cache", source, tokenizer, ALPACA, 128, "Truncate")
        assert again.ids.tolist() == expected

    @pytest.mark.parametrize(
        "change",
        [
            {"template": TEMPLATES["llama-2"]},
            {"max_length": 99},
            {"overlong": "Drop"},
            {"system": "Be brief."},
            {"tokenizer": "other"},
            {"content": "other"},
        ],
    )
    def test_each_option_and_each_content_changes_the_key(self, source, tokenizer, tmp_path, change):
        def key(template=ALPACA, max_length=100, overlong="Truncate", system=None, tok=tokenizer):
            options = InstructionOptions(template, max_length, overlong, system)
            return instruction_cache_key(dataset_of(source), tok, options)

        before = key()
        assert key() == before
        change = dict(change)
        if change.pop("content", None):
            dump(source / "a.json", [])
        if change.pop("tokenizer", None):
            change["tok"] = load_tokenizer(tiny_sentencepiece(tmp_path / "other", vocab_size=380))
        assert key(**change) != before

    def test_a_template_that_makes_other_ids_has_another_key(self, source, tokenizer):
        class Changed(type(ALPACA)):
            def target_ids(self, tok, output):
                return [*super().target_ids(tok, output), tok.eos_id]

        keys = {
            instruction_cache_key(dataset_of(source), tokenizer, InstructionOptions(template, 100, "Drop"))
            for template in (ALPACA, Changed())
        }
        assert len(keys) == 2

    def test_a_refusal_names_the_dataset_and_leaves_no_cache(self, tmp_path, tokenizer):
        source = dump(tmp_path / "data" / "a.json", [{"instruction": "x", "output": ""}]).parent
        error = refusal(lambda: build(tmp_path / "c", source, tokenizer, ALPACA, 128, "Truncate"))
        assert error.file == str(source)
        assert list((tmp_path / "c").iterdir()) == []

    def test_a_cache_that_nobody_built_is_a_temporary_fault(self, tmp_path):
        with pytest.raises(Temporary, match="no instruction cache"):
            open_instructions(tmp_path, "0" * 64)
