"""Volumes: who writes where, which conflicts there are, and the claim that is made."""

import pytest

from builders import (
    CLUSTER,
    LAPTOP,
    finished,
    model_import,
    model_server,
    one_of_each,
    pretrain_job,
    volume,
    world,
)
from herdsman.core.plan import plan
from herdsman.core.volumes import overlap, writes
from herdsman.core.world import Key, WritePath

BASE = finished(model_import())
OTHER = Key("SFTJob", "other")
SHARED = {"claim": "shared", "path": "runs/zh"}


def children(resource, *, site=CLUSTER, **facts):
    return plan(resource, world(BASE, **facts), site).children


def refusal(resource, *, site=CLUSTER, **facts):
    return plan(resource, world(BASE, **facts), site).refused


def test_every_job_writes_a_directory_of_its_own_and_a_server_none():
    paths = [writes(resource) for resource in one_of_each()]
    assert paths[-1] is None
    assert paths[2] == WritePath("pj-zh", "pretrainjobs/zh")
    assert len(set(paths)) == len(paths)


def test_a_workspace_on_an_existing_claim_is_written_there():
    assert writes(pretrain_job(workspace=SHARED)) == WritePath("shared", "runs/zh")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a", "a", True),
        ("a/b", "a", True),
        ("a", "a/b/c", True),
        (".", "a", True),
        ("a", "ab", False),
        ("a/b", "a/c", False),
    ],
)
def test_two_paths_overlap(one, other, expected):
    assert overlap(one, other) is expected
    assert overlap(other, one) is expected


@pytest.mark.parametrize("taken", ["runs/zh", "runs", "runs/zh/deeper", "."])
def test_a_directory_of_another_resource_is_refused_with_its_name(taken):
    problem = refusal(
        pretrain_job(workspace=SHARED),
        writers={WritePath("shared", taken): OTHER},
        volumes=["corpora", "mi-base", "shared"],
    )
    assert problem.reason == "PathConflict"
    assert "runs/zh on the volume shared belongs to SFTJob other" in problem.message
    assert "workspace.path" in problem.hint


def test_the_same_path_on_another_claim_is_free():
    writers = {WritePath("elsewhere", "runs/zh"): OTHER}
    assert children(pretrain_job(workspace=SHARED), writers=writers, volumes=["corpora", "mi-base", "shared"])


def test_an_input_inside_the_own_directory_is_refused():
    job = pretrain_job(workspace=SHARED, dataset={"volume": {"claim": "shared", "path": "runs/zh/data"}})
    problem = refusal(job, volumes=["shared", "mi-base"])
    assert problem.reason == "InvalidSpec"
    assert problem.field == "spec.dataset.volume"


def test_an_existing_claim_must_exist_on_a_cluster_and_is_made_on_one_machine():
    job = pretrain_job(workspace=SHARED)
    (problem,) = plan(job, world(BASE), CLUSTER).waiting_for
    assert problem.reason == "VolumeNotFound"
    assert problem.field == "spec.workspace.claim"
    assert children(job, site=LAPTOP)


@pytest.mark.parametrize(
    ("spec", "mode"),
    [
        ({}, "ReadWriteOnce"),
        ({"compute": {"nodes": 2}}, "ReadWriteMany"),
        ({"workspace": {"accessMode": "ReadWriteMany"}}, "ReadWriteMany"),
    ],
    ids=["one node", "several nodes", "as asked"],
)
def test_the_claim_that_is_made_can_be_mounted_by_all_nodes(spec, mode):
    claim = children(pretrain_job(**spec))[0]
    assert claim["kind"] == "PersistentVolumeClaim"
    assert claim["spec"]["accessModes"] == [mode]


def test_the_claim_outlives_the_resource_unless_it_should_not():
    kept, dropped = (children(pretrain_job(workspace={"retain": retain}))[0] for retain in (True, False))
    assert "ownerReferences" not in kept["metadata"]
    assert dropped["metadata"]["ownerReferences"][0]["uid"] == "uid-pj-zh"


def test_size_and_class_of_the_claim_are_as_asked():
    claim = children(pretrain_job(workspace={"size": "200Gi", "storageClassName": "fast"}))[0]
    assert claim["spec"]["resources"] == {"requests": {"storage": "200Gi"}}
    assert claim["spec"]["storageClassName"] == "fast"


def test_no_claim_is_made_where_one_is_named():
    kinds = [
        child["kind"] for child in children(pretrain_job(workspace=SHARED), volumes=["shared", "corpora", "mi-base"])
    ]
    assert kinds == ["ConfigMap", "Job"]


ONE_NODE_VOLUMES = [
    (
        "its own access mode",
        {"workspace": {"accessMode": "ReadWriteOnce"}},
        [],
        "spec.workspace.accessMode",
    ),
    ("an existing claim", {"workspace": SHARED}, [volume("shared", "ReadWriteOnce")], "spec.workspace.claim"),
    ("an input", {}, [volume("corpora", "ReadWriteOncePod")], "spec.dataset.volume"),
    ("an input's artifact", {}, [volume("mi-base", "ReadWriteOnce")], "spec.model.modelImport"),
]


@pytest.mark.parametrize(
    ("spec", "changed", "field"), [row[1:] for row in ONE_NODE_VOLUMES], ids=[row[0] for row in ONE_NODE_VOLUMES]
)
def test_several_nodes_are_refused_a_volume_for_one_node(spec, changed, field):
    rest = [volume(name) for name in ("corpora", "mi-base") if name not in {entry.claim for entry in changed}]
    problem = refusal(pretrain_job(compute={"nodes": 2}, **spec), volumes=[*changed, *rest])
    assert (problem.reason, problem.field) == ("InvalidSpec", field)
    assert "spec.compute.nodes is 2" in problem.message
    assert "ReadWriteMany" in problem.hint


def test_a_volume_for_one_node_will_do_for_one_node_and_on_one_machine():
    modest = [volume("corpora", "ReadWriteOnce"), volume("mi-base", "ReadWriteOnce")]
    assert children(pretrain_job(), volumes=modest)
    assert children(pretrain_job(compute={"nodes": 2}), volumes=modest, site=LAPTOP)


def test_readers_of_many_nodes_are_accepted():
    assert children(pretrain_job(compute={"nodes": 2}), volumes=[volume("corpora", "ReadOnlyMany"), "mi-base"])


def test_a_name_that_belongs_to_somebody_else_is_never_overwritten():
    planned = plan(pretrain_job(), world(BASE, foreign=[Key("Job", "pj-zh-1")]), CLUSTER)
    assert planned.refused.reason == "NameConflict"
    assert "Job pj-zh-1" in planned.refused.message
    assert planned.children == ()


def test_a_servers_names_are_guarded_alike():
    server = model_server(model={"modelImport": "base"})
    assert refusal(server, foreign=[Key("Service", "ms-chat")]).reason == "NameConflict"
