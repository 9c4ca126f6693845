"""The commands that look and tidy up."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from builders import manifest
from shells.homes import model_import, pretrain

LORA = {"recipe": {"maxSteps": 10}}


@pytest.fixture
def done(herdsman):
    """A home with two finished resources."""
    herdsman("run", *herdsman.manifests(model_import(), pretrain()))
    return herdsman


@pytest.mark.parametrize("kind", ["ModelImport", "modelimport", "MODELIMPORTS", "mi"])
def test_a_kind_is_known_by_all_its_names(done, kind):
    assert "ModelImport/base" in done("get", kind)[1]


def test_an_unknown_kind_gets_a_hint(done):
    code, _, err = done("get", "modelimprot")
    assert code == 2
    assert "did you mean ModelImport?" in err


def test_an_unknown_name_gets_the_known_ones(done):
    code, _, err = done("get", "mi", "bass")
    assert code == 1
    assert "there are base" in err


def test_get_lists_everything_in_the_order_of_the_pipeline(done):
    assert [line.split()[0] for line in done("get")[1].splitlines()[1:]] == ["ModelImport/base", "PretrainJob/zh"]


def test_get_wide_has_restarts_and_message(done):
    assert "RESTARTS  MESSAGE" in done("get", "-o", "wide")[1].splitlines()[0]


def test_get_as_yaml_can_be_applied_again(done, tmp_path):
    path = tmp_path / "again.yaml"
    path.write_text(done("get", "-o", "yaml")[1])
    assert yaml.safe_load(path.read_text())["items"][0]["status"]["phase"] == "Succeeded"
    code, out, _ = done("run", path)
    assert (code, "Nothing to do" in out) == (0, True)


def test_get_without_a_home_says_so(herdsman):
    code, _, err = herdsman("get")
    assert code == 1
    assert "nothing was applied in" in err


def test_looking_changes_no_file(done):
    before = {path: path.stat().st_mtime_ns for path in done.home.root.rglob("*")}
    for command in (["get"], ["get", "-o", "wide"], ["describe", "pj", "zh"], ["logs", "pj", "zh"]):
        assert done(*command)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in done.home.root.rglob("*")} == before


def test_describe_tells_everything(done):
    out = done("describe", "pj", "zh")[1]
    for told in (
        "PretrainJob/zh",
        "✔ Succeeded",
        "model.modelImport",
        "DependenciesReady",
        "EXIT CODE",
        "adapter",
        "heldout_loss",
        "2.125",
        "ReferenceNotReady",
    ):
        assert told in out


def test_describe_tells_a_failure_with_its_hint(herdsman):
    herdsman.behave(base=[42])
    herdsman("run", *herdsman.manifests(model_import()))
    out = herdsman("describe", "mi", "base")[1]
    assert "zh.jsonl, line 7: No output in this record." in out
    assert "Add it." in out


def test_logs_of_each_attempt(herdsman):
    herdsman.behave(base=[75, "done"])
    herdsman("run", *herdsman.manifests(model_import()))
    assert herdsman("logs", "mi", "base", "--attempt", "1")[0] == 0
    assert herdsman("logs", "mi", "base", "--follow")[1].count("started") == 1
    code, _, err = herdsman("logs", "mi", "base", "--attempt", "3")
    assert (code, "there are 1, 2" in err) == (1, True)
    assert "counts from 0" in herdsman("logs", "mi", "base", "--rank", "1")[2]


def test_delete_forgets_a_resource_and_keeps_its_files(done):
    code, out, _ = done("delete", "pj", "zh")
    assert code == 0
    assert f"{done.pretrain_dir()} stays" in out
    assert (done.pretrain_dir() / "artifact").is_dir()
    assert "PretrainJob" not in done("get")[1]
    assert not (done.home.jobs / "pj-zh-1").exists()


def test_delete_purge_also_deletes_what_it_wrote(done):
    code, _, err = done("delete", "pj", "zh", "--purge")
    assert (code, err) == (0, "")
    assert not (done.home.volumes / "pj-zh").exists()
    assert done("run", *done.manifests(model_import(), pretrain(stage="EmbeddingsOnly")))[0] == 0


def test_delete_warns_of_what_still_refers_to_it(herdsman):
    herdsman.behave(zh=[42])
    herdsman("run", *herdsman.manifests(model_import(), pretrain()))
    code, _, err = herdsman("delete", "mi", "base")
    assert code == 0
    assert "PretrainJob/zh refers to ModelImport/base" in err


def test_plan_tells_everything_and_makes_nothing(herdsman):
    merge = manifest("LoRAMerge", "merged", {"model": {"modelImport": "base"}, "adapters": [{"pretrainJob": "zh"}]})
    home = herdsman.home.root.parent / "other"
    code, out, _ = herdsman("plan", *herdsman.manifests(merge, pretrain(**LORA), model_import()), "--home", home)
    assert code == 0
    assert [line.split()[1:4] for line in out.splitlines()[1:4]] == [
        ["ModelImport/base", "Job", "mi-base-1"],
        ["PretrainJob/zh", "Job", "pj-zh-1"],
        ["LoRAMerge/merged", "Job", "lm-merged-1"],
    ]
    assert "3 of 3 resources can run; nothing was touched." in out
    assert not home.exists()


def test_plan_names_what_this_machine_lacks_and_still_exits_with_0(herdsman):
    code, out, _ = herdsman("plan", herdsman.write(model_import(), pretrain(compute={"gpusPerNode": 8})))
    assert code == 0
    assert "ModelImport/base, PretrainJob/zh: the volume corpora is not here" in out
    assert "PretrainJob/zh: asks for" in out
    assert "2 of them not on this machine as it is" in out


WRONG_PLANS = {
    "a reference to nothing": ([pretrain()], "there is no ModelImport base"),
    "an adapter for a model": (
        [model_import(), pretrain(), pretrain("b", model={"pretrainJob": "zh"})],
        "PretrainJob/b",
    ),
    "one path for two": (
        [model_import(workspace={"claim": "w", "path": "x"}), model_import("b", workspace={"claim": "w", "path": "x"})],
        "ModelImport/b",
    ),
}


@pytest.mark.parametrize(("manifests", "told"), WRONG_PLANS.values(), ids=WRONG_PLANS)
def test_plan_exits_with_1_where_something_would_be_refused(herdsman, manifests, told):
    code, out, _ = herdsman("plan", *herdsman.manifests(*manifests))
    assert code == 1
    assert told in next(line for line in out.splitlines() if line.startswith("✘ ") and ": " in line)


def test_plan_marks_what_only_waits_for_something_wrong(herdsman):
    wrong = pretrain(
        recipe={"lora": {"trainFully": []}}, tokenizer={"volume": {"claim": "corpora"}}, model={"loraMerge": "x"}
    )
    merge = manifest("LoRAMerge", "merged", {"model": {"modelImport": "base"}, "adapters": [{"pretrainJob": "zh"}]})
    _, out, _ = herdsman("plan", *herdsman.manifests(model_import(), wrong, merge))
    assert [line.split()[:2] for line in out.splitlines()[1:4]] == [
        ["+", "ModelImport/base"],
        ["✘", "PretrainJob/zh"],
        ["○", "LoRAMerge/merged"],
    ]
    assert "1 of 3 resources can run" in out


def test_plan_of_wrong_manifests_exits_with_2(herdsman):
    assert herdsman("plan", herdsman.write({**model_import(), "spec": {}}))[0] == 2


@pytest.mark.parametrize(
    ("output", "read"), [("json", json.loads), ("yaml", lambda text: list(yaml.safe_load_all(text)))]
)
def test_plan_for_programs_has_all_children(herdsman, output, read):
    plans = read(herdsman("plan", *herdsman.manifests(model_import(), pretrain()), "-o", output)[1])
    assert [child["kind"] for child in plans[0]["children"]] == ["PersistentVolumeClaim", "ConfigMap", "Job"]
    assert plans[1]["after"] == [{"kind": "ModelImport", "name": "base"}]


def test_plan_of_what_is_done_says_so(done):
    out = done("plan", *done.manifests(model_import(), pretrain(), pretrain("more")))[1]
    assert out.count("nothing, it is done") == 2
    assert "Job pj-more-1" in out


def test_help_answers_at_once():
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "from herdsman.cli import main; main()", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Apply manifests and follow them" in done.stdout
    for heavy in ("pydantic", "herdsman.api", "asyncio", "torch"):
        assert f"| {heavy}" not in done.stderr.replace("|   ", "| ").replace("  ", "")
    assert time.perf_counter() - started < 10


def test_a_bug_is_one_sentence_and_no_traceback(herdsman, monkeypatch):
    monkeypatch.setattr("herdsman.cli.get.get_command", lambda *_: 1 / 0)
    code, _, err = herdsman("get")
    assert code == 70
    assert err.startswith("herdsman: this is a bug in Herdsman: ZeroDivisionError: division by zero; HERDSMAN_DEBUG=1")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["quickstart", "smollm2-zh"])
def test_every_resource_of_an_example_can_run_here(herdsman, tmp_path, name):
    folder = Path(__file__).parents[2] / "examples" / name
    (tmp_path / "data").mkdir()
    code, out, _ = herdsman("plan", str(folder), "--volume", f"{name}={tmp_path / 'data'}")
    assert code == 0, out
    told = re.search(r"(\d+) of (\d+) resources can run", out)
    assert told is not None
    assert told[1] == told[2] != "0", out
