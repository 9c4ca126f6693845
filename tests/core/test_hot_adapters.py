"""Adapters that are loaded and unloaded while a server runs: planned beside it, and told in its status."""

import json
from dataclasses import replace

import pytest

from builders import (
    CLUSTER,
    LAPTOP,
    artifact,
    digest,
    finished,
    lora_merge,
    model_server,
    pretrain_job,
    sft_job,
    with_status,
    world,
)
from herdsman.api.v1alpha1.status import AdapterStatus
from herdsman.core.plan import plan
from herdsman.core.serving import unwanted_children
from herdsman.core.status import status
from herdsman.core.world import Key, ServerFacts

BASE = finished(lora_merge(), vocab_size=49954)
ON_BASE = {"base_digest": BASE.status.artifact.digest}
LAW = finished(sft_job("law"), vocab_size=None, **ON_BASE)
MED = finished(sft_job("med"), vocab_size=None, **ON_BASE)


def server(*names, **spec):
    listed = [{"name": name, "adapter": {"sftJob": name}} for name in names]
    return model_server(hotAdapters=listed, **spec)


def planned(resource, *others, site=CLUSTER):
    return plan(resource, world(BASE, *others), site)


def listed(made):
    """The names and paths in the list that replicas watch."""
    (found,) = [child for child in made.children if child["metadata"]["name"] == "ms-chat-adapters"]
    assert "immutable" not in found
    return {each["name"]: each["source"]["path"] for each in json.loads(found["data"]["job.json"])["adapters"]}


def template(made):
    return next(child for child in made.children if child["kind"] == "Deployment")["spec"]["template"]


def test_the_list_is_a_file_of_its_own_that_replicas_watch():
    made = planned(server("law", "med"), LAW, MED)
    assert set(listed(made)) == {"law", "med"}
    pod = template(made)["spec"]
    (volume,) = [each for each in pod["volumes"] if each.get("configMap", {}).get("name") == "ms-chat-adapters"]
    (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == volume["name"]]
    config = next(child for child in made.children if child["kind"] == "ConfigMap")["data"]["job.json"]
    assert json.loads(config)["adaptersFile"] == f"{mount['mountPath']}/job.json"
    assert "subPath" not in mount, "a subPath never changes"
    claims = {each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"] if "persistentVolumeClaim" in each}
    assert {LAW.status.artifact.claim, MED.status.artifact.claim} <= claims


def test_an_adapter_more_on_a_volume_that_is_mounted_replaces_no_replica():
    beside = finished(sft_job("med"), vocab_size=None, claim=LAW.status.artifact.claim, **ON_BASE)
    before, after = planned(server("law"), LAW), planned(server("law", "med"), LAW, beside)
    assert template(before) == template(after)
    assert set(listed(after)) == {"law", "med"}


def test_a_server_without_hot_adapters_has_no_list_and_loses_the_one_it_had():
    made = planned(model_server())
    assert [child["metadata"]["name"] for child in made.children].count("ms-chat-adapters") == 0
    configs = tuple(child["metadata"]["name"] for child in made.children if child["kind"] == "ConfigMap")
    facts = ServerFacts(1, 1, "u", 1, config=configs[0], configs=(*configs, "ms-chat-adapters"))
    assert Key("ConfigMap", "ms-chat-adapters") in unwanted_children(model_server(), made.children, facts)
    wanted = planned(server("law"), LAW)
    assert Key("ConfigMap", "ms-chat-adapters") not in unwanted_children(server("law"), wanted.children, facts)


GROWN = finished(sft_job("law"), vocab_size=49955, **ON_BASE)
AS_MANY = finished(sft_job("law"), vocab_size=49954, **ON_BASE)
OTHER = finished(sft_job("law"), vocab_size=None, base_digest=digest("another"))
CASES = {
    "is not there yet": ([], {}, "there is no SFTJob law"),
    "is not finished yet": ([with_status(sft_job("law"), None)], {}, "is not finished yet"),
    "was trained on another model": ([OTHER], {}, "was trained on the model"),
    "changes the vocabulary": ([GROWN], {}, "Merge it with a LoRAMerge"),
    "brings an embedding, which vLLM does not take": (
        [AS_MANY],
        {"engine": "vllm", "compute": {"gpusPerNode": 1}},
        "Merge it with a LoRAMerge",
    ),
}


@pytest.mark.parametrize("what", CASES)
def test_the_server_is_served_all_the_same_where_an_adapter(what):
    others, spec, says = CASES[what]
    resource = server("law", "med", **spec)
    made = planned(resource, *others, MED)
    assert made.refused is None
    assert set(listed(made)) == {"med"}
    assert made.requeue_after is not None
    seen = world(BASE, *others, MED, server=ServerFacts(1, 1, "u", 1))
    law, med = status(resource, plan(resource, seen, CLUSTER), seen).adapters
    assert (law.name, law.loaded) == ("law", False)
    assert says in law.message
    assert med.message == "The replicas have not said yet that it is loaded."


def test_an_adapter_with_an_embedding_of_as_many_rows_is_loaded():
    assert set(listed(planned(server("law"), AS_MANY))) == {"law"}


def test_hot_adapters_lie_on_the_adapters_that_are_merged_beneath():
    first = finished(pretrain_job("zh"), vocab_size=49954, **ON_BASE)
    on_top = finished(sft_job("law"), vocab_size=None, parents=[first.status.artifact.digest], **ON_BASE)
    resource = server("law", adapters=[{"pretrainJob": "zh"}])
    assert set(listed(planned(resource, first, on_top))) == {"law"}
    (told,) = planned(resource, first, LAW).adapters
    assert "with no other adapter beneath it" in told.problem.message


def test_the_name_of_the_model_itself_is_refused():
    resource = model_server(hotAdapters=[{"name": "chat", "adapter": {"sftJob": "law"}}])
    assert "as the model itself is" in planned(resource, LAW).refused.message


YES, NO = AdapterStatus(name="law", loaded=True), AdapterStatus(name="law", loaded=False)
BROKEN = AdapterStatus(name="law", loaded=False, message="adapter_config.json: r is missing.")
HEARD = [
    ("nobody was heard", (), False, "not said yet"),
    ("all have it", ((YES,), (YES,)), True, None),
    ("one is behind", ((YES,), (NO,)), False, "not said yet"),
    ("one does not know it", ((YES,), ()), False, "not said yet"),
    ("one cannot load it", ((YES,), (BROKEN,)), False, "r is missing"),
]


@pytest.mark.parametrize(("replicas", "loaded", "says"), [row[1:] for row in HEARD], ids=[row[0] for row in HEARD])
def test_an_adapter_counts_as_loaded_when(replicas, loaded, says):
    resource = server("law")
    seen = replace(world(BASE, LAW), server=ServerFacts(2, 2, "u", 1, adapters=replicas))
    found = status(resource, plan(resource, seen, CLUSTER), seen)
    assert found.phase == "Progressing" if len(replicas) == 9 else "Ready"
    (told,) = found.adapters
    assert told.loaded is loaded
    assert told.message is None if says is None else says in told.message


def test_on_one_machine_the_list_is_a_file_of_the_home_and_the_answer_another():
    made = planned(server("law"), LAW, site=LAPTOP)
    config = json.loads(next(child for child in made.children if child["kind"] == "ConfigMap")["data"]["job.json"])
    assert config["adaptersReport"] == f"{config['adaptersFile']}.report"
    assert set(listed(made)) == {"law"}
    assert artifact(LAW).kind == "adapter"
