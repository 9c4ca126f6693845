"""What is stored: a run's definition never changes, and nothing is written without need."""

import json

import pytest

from builders import NOW, later, resource
from herdsman.api.v1alpha1.status import Phase, Status
from herdsman.cluster import Invalid
from herdsman.core.world import Key
from herdsman.local.home import Home, HomeRefused
from herdsman.local.json_files import DamagedFile, write_json
from herdsman.local.store import Store

KEY = Key("PretrainJob", "zh")


@pytest.fixture
def store(tmp_path):
    return Store(Home(tmp_path))


def job(**spec):
    return resource(
        "PretrainJob", "zh", {"model": {"modelImport": "base"}, "dataset": {"volume": {"claim": "c"}}, **spec}
    )


def apply(store, *resources, now=NOW):
    applications = store.compare(resources, now)
    store.commit(applications)
    return applications


def test_a_new_resource_gets_an_identity(store):
    (application,) = apply(store, job())
    stored = store.read(KEY)
    assert application.action == "created"
    assert (len(stored.metadata.uid), stored.metadata.generation, stored.metadata.creation_timestamp) == (36, 1, NOW)


def test_the_same_manifest_again_keeps_everything_and_writes_nothing(store, tmp_path):
    apply(store, job())
    before = store.read(KEY)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    (application,) = apply(store, job(), now=later(60))
    assert application.action == "unchanged"
    assert store.read(KEY) == before
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == stamps


@pytest.mark.parametrize(
    "spec",
    [
        {"maxRestarts": 3},
        {"stage": "LoRA"},
        {"recipe": {}},
        {"recipe": {"lora": {}}},
        {"compute": {"nodes": 1, "tolerations": []}},
    ],
    ids=str,
)
def test_a_default_written_out_is_no_change(store, spec):
    apply(store, job())
    (application,) = apply(store, job(**spec))
    assert application.action == "unchanged"
    assert store.read(KEY).metadata.generation == 1


@pytest.mark.parametrize(
    "spec", [{"suspend": True}, {"maxRestarts": 9}, {"stallSeconds": 600}, {"ttlSecondsAfterFinished": 60}], ids=str
)
def test_a_mutable_field_bumps_the_generation(store, spec):
    uid = apply(store, job())[0].manifest["metadata"]["uid"]
    (application,) = apply(store, job(**spec))
    metadata = store.read(KEY).metadata
    assert (application.action, metadata.generation, metadata.uid) == ("updated", 2, uid)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"stage": "Full"}, 'spec.stage was "LoRA" and cannot become "Full"'),
        ({"recipe": {"lora": {"rank": 8}}}, "spec.recipe.lora.rank was unset and cannot become 8"),
        ({"model": {"modelImport": "other"}}, 'spec.model.modelImport was "base" and cannot become "other"'),
        ({"compute": {"nodes": 2}}, "spec.compute.nodes was 1 and cannot become 2"),
        ({"tokenizer": {"tokenizerMerge": "t"}}, "spec.tokenizer was unset and cannot become {'tokenizerMerge': 't'}"),
    ],
    ids=["a choice", "deep in the recipe", "a reference", "a default", "an object"],
)
def test_an_immutable_field_is_refused_with_both_values_and_the_remedy(store, spec, told):
    apply(store, job())
    (application,) = apply(store, job(**spec, suspend=True))
    assert application.action == "refused"
    assert told in application.refusal
    assert "new name" in application.refusal
    assert "herdsman delete pretrainjob zh" in application.refusal
    assert store.read(KEY).metadata.generation == 1


def test_resources_applied_together_have_an_order(store):
    apply(store, *(resource("ModelImport", name, {"source": {"volume": {"claim": "c"}}}) for name in "cab"))
    assert [key.name for key in store.all()] == ["c", "a", "b"]


def test_a_status_is_written_once_and_its_history_kept(store, tmp_path):
    apply(store, job())
    waiting, running = Status(phase=Phase.WAITING), Status(phase=Phase.RUNNING)
    assert store.write_status(KEY, waiting, NOW)
    assert not store.write_status(KEY, waiting, later(1))
    assert store.write_status(KEY, running, later(2))
    assert store.status(KEY) == running
    assert store.read(KEY).status == running
    assert [entry["phase"] for entry in store.history(KEY)] == ["Waiting", "Running"]


def test_a_status_of_a_deleted_resource_is_not_written(store, tmp_path):
    apply(store, job())
    store.delete(KEY)
    assert not store.write_status(KEY, Status(), NOW)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_stored_resource_that_no_longer_fits_is_told_with_its_fields(store, tmp_path):
    apply(store, job())
    path = tmp_path / "resources" / "PretrainJob" / "zh.json"
    data = json.loads(path.read_text())
    write_json(path, {**data, "spec": {**data["spec"], "stage": "Old"}})
    found = store.read(KEY)
    assert isinstance(found, Invalid)
    assert "spec.stage" in found.problems[0]
    assert store.compare([job()], NOW)[0].action == "refused"


def test_a_damaged_file_is_named(store, tmp_path):
    apply(store, job())
    path = tmp_path / "resources" / "PretrainJob" / "zh.json"
    path.write_text("{")
    with pytest.raises(DamagedFile, match=str(path)):
        store.read(KEY)


def test_a_home_of_a_newer_herdsman_is_refused(tmp_path):
    write_json(tmp_path / "home.json", {"format": 99})
    with pytest.raises(HomeRefused, match="format 99"):
        Home(tmp_path).create()


@pytest.mark.parametrize(
    ("option", "environment", "expected"),
    [("/a", {"HERDSMAN_HOME": "/b"}, "/a"), (None, {"HERDSMAN_HOME": "/b"}, "/b")],
)
def test_the_home_is_the_option_or_the_environment(option, environment, expected):
    assert str(Home.at(option, environment).root) == expected


def test_the_home_is_in_this_directory_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Home.at(None, {}).root == tmp_path / ".herdsman"
