"""Given records: cleaned, mixed, split, and published as a dataset that a training reads."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from herdsman.api.job_config import InstructionSetConfig
from herdsman_trainer.artifacts import open_input, verify_artifact
from herdsman_trainer.errors import BadInput
from herdsman_trainer.held_out import split_hash, split_threshold
from herdsman_trainer.instruction_files import find_instruction_files, read_instructions
from instruction_api import (
    bytes_of,
    config_of,
    given,
    lines,
    make,
    many,
    report,
    set_directory,
    written,
)
from run_configs import source


def test_given_records_become_a_dataset_that_a_training_reads(tmp_path):
    good = many(5)
    bad = [
        {"instruction": "写诗", "output": ""},
        {"instruction": "Write", "output": "Spring is here"},
        good[0],
        {"x": 1},
    ]
    config = config_of(tmp_path, sources=[given(written(tmp_path / "in", [*good, *bad]))])
    context, artifact = make(config)
    assert lines(config) == good
    assert (artifact.kind, artifact.path) == ("dataset", "work/artifact")
    manifest = verify_artifact(set_directory(config), "Digests")
    assert set(manifest.files) == {"train/records.jsonl", "report.yaml"}
    assert set(manifest.inputs) == {"spec.sources[0].dataset"}
    figures = {metric.name: metric.value for metric in manifest.report}
    assert figures["records"] == "5"
    assert {name: value for name, value in figures.items() if name.startswith("dropped_")} == {
        "dropped_no_instruction": "1",
        "dropped_no_output": "1",
        "dropped_wrong_language": "1",
        "dropped_duplicate": "1",
    }
    assert context.closing_words == ""
    part = source(set_directory(config), artifact=artifact).model_copy(update={"part": "train"})
    read = list(read_instructions(find_instruction_files(open_input(part, "Digests"))))
    assert [each.prompt for each in read] == [each["instruction"] for each in good]


def test_the_same_records_give_the_same_bytes_wherever_they_are_made(tmp_path):
    made = []
    for name in ("a", "b"):
        folder = written(tmp_path / name / "in", many(50))
        config = config_of(tmp_path / name, sources=[given(folder)], held_out_fraction=0.2, max_records=30)
        make(config)
        made.append(bytes_of(config))
    assert made[0] == made[1]


def test_held_out_records_are_apart_and_follow_the_question(tmp_path):
    records = [
        record | {"output": text} for record in many(100) for text in ("答案是甲", f"另一个答案{record['instruction']}")
    ]
    config = config_of(tmp_path, sources=[given(written(tmp_path / "in", records))], held_out_fraction=0.2)
    make(config)
    train, held_out = lines(config), lines(config, "heldout")
    assert len(train) + len(held_out) == 200
    assert 20 <= len(held_out) <= 60
    assert not {record["instruction"] for record in train} & {record["instruction"] for record in held_out}


def test_a_trainings_own_held_out_part_is_not_taken_away_by_that_of_the_set(tmp_path):
    config = config_of(tmp_path, sources=[given(written(tmp_path / "in", many(400)))], held_out_fraction=0.3)
    make(config)
    below = sum(split_hash(record["instruction"]) < split_threshold(0.3) for record in lines(config))
    assert 0.2 < below / len(lines(config)) < 0.4


def test_weights_mix_as_much_as_the_scarcest_allows(tmp_path):
    folders = [written(tmp_path / str(place), many(count, place)) for place, count in enumerate((100, 12))]
    sources = [
        given(folder, place=place, weight=weight)
        for place, (folder, weight) in enumerate(zip(folders, (3, 1), strict=True))
    ]
    config = config_of(tmp_path, sources=sources)
    make(config)
    assert [(part["kept"], part["inTheSet"]) for part in report(config)["sources"]] == [(100, 36), (12, 12)]
    fewer = config_of(tmp_path, sources=sources, max_records=20, uid="uid-2", relative="b")
    make(fewer)
    assert [part["inTheSet"] for part in report(fewer)["sources"]] == [15, 5]


def test_a_source_gives_its_first_records_up_to_a_number(tmp_path):
    records = many(30)
    config = config_of(tmp_path, sources=[given(written(tmp_path / "in", records), maxRecords=7)])
    make(config)
    assert lines(config) == records[:7]


def test_what_stands_in_two_sources_is_taken_once_from_the_first(tmp_path):
    records = many(10)
    sources = [given(written(tmp_path / str(place), records[:size]), place=place) for place, size in enumerate((6, 10))]
    config = config_of(tmp_path, sources=sources)
    make(config)
    assert [part["kept"] for part in report(config)["sources"]] == [6, 4]


NOTHING = {
    "only English": (
        [{"instruction": "Write", "output": "Spring"}],
        "No record is left of 1: 1 wrong language",
    ),
    "no records at all": ([], "No record is left of 0"),
}


@pytest.mark.parametrize("what", NOTHING)
def test_an_empty_set_is_refused_with(what, tmp_path):
    records, sentence = NOTHING[what]
    config = config_of(tmp_path, sources=[given(written(tmp_path / "in", records))])
    with pytest.raises(BadInput, match=sentence) as refused:
        make(config)
    assert "spec.language" in refused.value.hint


def test_a_weight_of_a_source_of_which_nothing_is_left_is_refused(tmp_path):
    sources = [
        given(written(tmp_path / "a", many(3)), place=0, weight=1),
        given(written(tmp_path / "b", [{"instruction": "Write", "output": "Spring"}]), place=1, weight=1),
    ]
    with pytest.raises(BadInput, match=re.escape("spec.sources[1].dataset has a weight, and no record of it is left")):
        make(config_of(tmp_path, sources=sources))


def test_as_a_process_it_needs_no_torch_and_ends_by_the_contract(tmp_path):
    config = config_of(tmp_path, sources=[given(written(tmp_path / "in", many(3)))])
    (tmp_path / "job.json").write_text(config.model_dump_json(by_alias=True))
    code = (
        "import sys; from herdsman_trainer.__main__ import main; code = main(['--config', sys.argv[1]]);"
        "assert 'torch' not in sys.modules, 'it is light'; sys.exit(code)"
    )
    environment = {"HERDSMAN_TERMINATION_FILE": str(tmp_path / "words"), "PATH": ""}
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "job.json")], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    words = json.loads((tmp_path / "words").read_text())
    assert (words["reason"], words["artifact"]["kind"]) == ("Succeeded", "dataset")
    assert InstructionSetConfig.model_validate_json((tmp_path / "job.json").read_bytes()) == config
    assert yaml.safe_load((set_directory(config) / "report.yaml").read_text())["records"]["train"] == 3
