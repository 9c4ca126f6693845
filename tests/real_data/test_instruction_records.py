"""The real records cleaned: nothing good is lost, and what is put in between goes."""

import json
import random

import pytest

from herdsman_trainer.instruction_making.languages import script_percent
from instruction_api import bytes_of, config_of, given, lines, make, report

pytestmark = pytest.mark.real_data
RECORDS = "ruozhiba_qa2449_gpt4o.json"


def test_real_records_stay_and_spoilt_copies_of_them_go(real_data, tmp_path):
    real = json.loads((real_data / RECORDS).read_text(encoding="utf-8"))
    chance = random.Random(1)
    copies = chance.sample(real, 200)
    spoilt = [
        *(record | {"output": f"{record['output']}！"} for record in copies[:50]),
        *(record | {"output": record["output"][:-4]} for record in copies[50:100] if len(record["output"]) > 150),
        *(record | {"output": ""} for record in copies[100:150]),
        *(record | {"output": "I am sorry, but as a language model I cannot answer this question at all. " * 5}
          for record in copies[150:]),
    ]  # fmt: skip
    folder = tmp_path / "in"
    folder.mkdir()
    for name, records in (("a.json", real), ("b.json", spoilt)):
        (folder / name).write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    config = config_of(tmp_path, sources=[given(folder)])
    make(config)
    assert report(config)["records"]["train"] == len(real) == 2449
    dropped = report(config)["dropped"]
    assert dropped["duplicate"] == dropped["no_output"] == 50
    assert sum(dropped.values()) == len(spoilt)
    assert dropped["near_duplicate"] >= 25
    assert dropped["wrong_language"] >= 48
    assert all(script_percent(record["output"], "zh") > 50 for record in lines(config))


def test_similar_instructions_go_where_that_is_asked_for_and_twice_the_same_is_the_same(real_data, tmp_path):
    made = []
    for name in ("a", "b"):
        source = [given(real_data / RECORDS)]
        config = config_of(tmp_path / name, sources=source, clean={"rougePercent": 70}, held_out_fraction=0.05)
        make(config)
        made.append(bytes_of(config))
    assert made[0] == made[1]
    assert report(config)["dropped"] == {"similar_instruction": 8}
    assert 90 < report(config)["records"]["heldout"] < 160
