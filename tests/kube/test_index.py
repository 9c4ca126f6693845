"""Who refers to whom, and who writes where."""

from hypothesis import given
from hypothesis import strategies as st

import builders
from herdsman.core import volumes
from herdsman.core.world import Key, WritePath
from herdsman.kube.cache import ResourceKey
from herdsman.kube.index import Index

TEAM = "default"


def key(resource):
    return ResourceKey(TEAM, Key(resource.kind, resource.metadata.name))


def writer(name, path, second=0):
    made = f"2026-01-01T00:00:{second:02d}Z"
    return builders.model_import(name, workspace={"claim": "w", "path": path}, metadata={"creationTimestamp": made})


def indexed(*resources):
    index = Index()
    for resource in resources:
        index.put(resource)
    return index


def test_those_that_name_a_resource_depend_on_it_also_before_it_exists():
    trained = builders.pretrain_job("zh")
    merged = builders.lora_merge("merged", adapters=[{"pretrainJob": "zh"}])
    index = indexed(trained, merged)
    assert index.dependants(key(builders.model_import("base"))) == [key(merged), key(trained)]
    assert index.dependants(key(trained)) == [key(merged)]


def test_what_waits_for_an_evaluation_is_woken_by_it():
    server = builders.model_server("chat", after=[{"evaluation": "quality"}])
    tuned = builders.sft_job("tuned", after=[{"evaluation": "quality"}])
    assert indexed(server, tuned).dependants(key(builders.evaluation("quality"))) == [key(server), key(tuned)]


def test_a_set_is_woken_by_the_server_that_it_asks_and_a_training_by_its_set():
    made = builders.instruction_set("made", generate={"endpoint": {"modelServer": "teacher"}})
    tuned = builders.sft_job("tuned", dataset={"instructionSet": "made"})
    index = indexed(made, tuned)
    assert index.dependants(key(builders.model_server("teacher"))) == [key(made)]
    assert index.dependants(key(made)) == [key(tuned)]


def test_a_dependant_that_is_gone_is_not_woken():
    trained = builders.pretrain_job("zh")
    index = indexed(trained)
    index.drop(key(trained))
    assert index.dependants(key(builders.model_import("base"))) == []


def test_the_elder_writer_of_a_directory_wins():
    old, young = writer("old", "runs", 1), writer("young", "runs", 2)
    index = indexed(old, young)
    assert index.elder_writers(key(young)) == {WritePath("w", "runs"): Key("ModelImport", "old")}
    assert index.elder_writers(key(old)) == {}
    assert index.rivals(key(old)) == [key(young)]


def test_of_two_made_in_the_same_second_the_first_by_name_wins():
    one, other = writer("a", "runs"), writer("b", "runs")
    index = indexed(other, one)
    assert list(index.elder_writers(key(other)).values()) == [Key("ModelImport", "a")]
    assert index.elder_writers(key(one)) == {}


def test_a_server_writes_nothing():
    index = indexed(builders.model_server("chat"))
    assert index.elder_writers(key(builders.model_server("chat"))) == {}


PATHS = st.lists(st.sampled_from(["a", "b", "a-b", "ab", "c"]), min_size=1, max_size=3).map("/".join) | st.just(".")


@given(st.lists(PATHS, min_size=1, max_size=8))
def test_overlaps_are_those_that_the_core_sees(paths):
    resources = [writer(f"r{number}", path, number) for number, path in enumerate(paths)]
    index = indexed(*resources)
    for number, path in enumerate(paths):
        expected = {place for place, other in enumerate(paths) if place != number and volumes.overlap(path, other)}
        assert {int(rival.key.name[1:]) for rival in index.rivals(key(resources[number]))} == expected
