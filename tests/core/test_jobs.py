"""The manifests of a run: Job, ConfigMap, Service, and the pods' security."""

import json

import pytest

from builders import (
    CLUSTER,
    LAPTOP,
    NOW,
    checked,
    finished,
    job,
    later,
    model_import,
    pretrain_job,
    suspended,
    with_status,
    world,
)
from herdsman.api.job_config import RUN_CONFIG
from herdsman.api.v1alpha1.status import Attempt, Status
from herdsman.core.environment import escaped
from herdsman.core.jobs import LONGEST_GRACE, SHORTEST_GRACE, grace_seconds
from herdsman.core.plan import plan
from herdsman.core.site import Site

BASE = finished(model_import())


def children(resource, *, site=CLUSTER, **facts):
    return {child["kind"]: child for child in plan(resource, world(BASE, **facts), site).children}


def pod(resource, **facts):
    return children(resource, **facts)["Job"]["spec"]["template"]["spec"]


def container(resource, **facts):
    return pod(resource, **facts)["containers"][0]


def test_the_children_come_in_the_order_they_are_made():
    kinds = [child["kind"] for child in plan(pretrain_job(compute={"nodes": 2}), world(BASE), CLUSTER).children]
    assert kinds == ["PersistentVolumeClaim", "ConfigMap", "Service", "Job"]


def test_the_attempts_objects_have_one_name_and_belong_to_the_resource():
    made = children(pretrain_job(compute={"nodes": 2}))
    for kind in ("ConfigMap", "Service", "Job"):
        assert made[kind]["metadata"]["name"] == "pj-zh-1"
        (owner,) = made[kind]["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == (
            "PretrainJob",
            "zh",
            "uid-pj-zh",
            True,
        )
        assert made[kind]["metadata"]["labels"] == {
            "app.kubernetes.io/managed-by": "herdsman",
            "herdsman.dev/kind": "PretrainJob",
            "herdsman.dev/name": "zh",
            "herdsman.dev/attempt": "1",
        }


def test_one_pod_that_falls_ends_the_attempt():
    spec = children(pretrain_job(compute={"nodes": 4}))["Job"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (
        "Indexed",
        4,
        4,
        0,
    )
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["podReplacementPolicy"] == "Failed"


def test_what_no_retry_mends_and_what_came_from_outside_fail_the_job_by_rule():
    rules = children(pretrain_job())["Job"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["action"] == rules[1]["action"] == "FailJob"
    assert rules[0]["onExitCodes"] == {"containerName": "trainer", "operator": "In", "values": [42, 43]}
    assert rules[1]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


def test_only_several_nodes_get_a_service_by_which_they_find_the_first():
    assert "Service" not in children(pretrain_job())
    made = children(pretrain_job(compute={"nodes": 2}))
    service, config = made["Service"], json.loads(made["ConfigMap"]["data"]["job.json"])
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == made["Job"]["spec"]["template"]["metadata"]["labels"]
    assert config["launch"]["masterAddress"] == "pj-zh-1-0.pj-zh-1"
    assert config["launch"]["masterPort"] == service["spec"]["ports"][0]["port"]
    assert made["Job"]["spec"]["template"]["spec"]["subdomain"] == "pj-zh-1"


def test_the_trainer_is_told_how_long_it_may_stand_still():
    def told(resource):
        return json.loads(children(resource)["ConfigMap"]["data"]["job.json"])["stallSeconds"]

    assert told(pretrain_job()) == 1800
    assert told(pretrain_job(stallSeconds=90)) == 90


def test_every_pod_meets_the_restricted_standard():
    spec = pod(pretrain_job())
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    context = spec["containers"][0]["securityContext"]
    assert context == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert not any("hostPath" in entry for entry in spec["volumes"])


def test_inputs_are_mounted_read_only_and_the_workspace_for_writing():
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container(pretrain_job())["volumeMounts"]}
    assert mounts == {
        "/etc/herdsman": True,
        "/tmp": False,
        "/dev/shm": False,
        "/volumes/corpora": True,
        "/volumes/mi-base": True,
        "/volumes/pj-zh": False,
    }


def test_a_claim_that_is_read_and_written_is_mounted_once_for_writing():
    shared = pretrain_job(workspace={"claim": "corpora", "path": "runs/zh"})
    mounts = container(shared)["volumeMounts"]
    assert [mount.get("readOnly", False) for mount in mounts if mount["mountPath"] == "/volumes/corpora"] == [False]


def test_the_configuration_is_mounted_and_is_what_the_trainer_reads():
    made = children(pretrain_job())
    config = RUN_CONFIG.validate_json(made["ConfigMap"]["data"]["job.json"])
    assert made["ConfigMap"]["immutable"] is True
    assert (config.kind, config.attempt, config.owner.uid) == ("PretrainJob", 1, "uid-pj-zh")
    assert config.workspace.path == "/volumes/pj-zh/pretrainjobs/zh"
    assert container(pretrain_job())["command"] == [
        "python",
        "-m",
        "herdsman_trainer",
        "--config",
        "/etc/herdsman/job.json",
    ]


def test_dollars_in_arguments_are_not_expanded():
    assert escaped("$(SECRET) $$ costs 5$") == "$$(SECRET) $$$$ costs 5$$"
    odd = Site(config_file="/etc/$(HOME)/job.json")
    command = children(pretrain_job(), site=odd)["Job"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[-1] == "/etc/$$(HOME)/job.json"


def test_resources_are_requested_and_only_memory_and_gpus_limited():
    asked = {"gpusPerNode": 8, "resources": {"cpu": "32", "memory": "400Gi", "ephemeralStorage": "10Gi"}}
    resources = container(checked(pretrain_job(compute=asked)))["resources"]
    assert resources["requests"] == {
        "cpu": "32",
        "memory": "400Gi",
        "ephemeral-storage": "10Gi",
        "nvidia.com/gpu": "8",
    }
    assert resources["limits"] == {"memory": "400Gi", "ephemeral-storage": "10Gi", "nvidia.com/gpu": "8"}


def test_scheduling_is_as_asked():
    spec = pod(
        pretrain_job(
            compute={
                "nodes": 2,
                "nodeSelector": {"zone": "b", "gpu": "h200"},
                "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "priorityClassName": "low",
                "image": "registry.local/trainer:1",
            }
        )
    )
    assert spec["nodeSelector"] == {"gpu": "h200", "zone": "b"}
    assert spec["tolerations"][0] == {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert spec["priorityClassName"] == "low"
    assert spec["containers"][0]["image"] == "registry.local/trainer:1"
    assert spec["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"


def test_a_lost_node_is_given_up_after_a_minute_unless_the_manifest_says_otherwise():
    lost = {entry["key"]: entry["tolerationSeconds"] for entry in pod(pretrain_job())["tolerations"]}
    assert lost == {"node.kubernetes.io/not-ready": 60, "node.kubernetes.io/unreachable": 60}
    own = {
        "key": "node.kubernetes.io/unreachable",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 900,
    }
    tolerations = pod(pretrain_job(compute={"tolerations": [own]}))["tolerations"]
    assert [entry["tolerationSeconds"] for entry in tolerations] == [900, 60]


def test_a_queue_decides_when_the_job_starts():
    queued = pretrain_job(compute={"queueName": "gpus"})
    job_manifest = children(queued)["Job"]
    assert job_manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert "suspend" not in job_manifest["spec"]
    assert children(pretrain_job())["Job"]["spec"]["suspend"] is False


@pytest.mark.parametrize("queue", [None, "gpus"])
def test_a_suspended_run_suspends_the_job_it_has(queue):
    resource = pretrain_job(compute={"queueName": queue} if queue else {})
    planned = children(suspended(resource), jobs=[job(resource)])
    assert planned["Job"]["spec"]["suspend"] is True


def test_a_suspended_run_makes_no_job():
    assert children(suspended(pretrain_job())) == {}


@pytest.mark.parametrize(
    ("checkpoint_bytes", "seconds"),
    [(0, SHORTEST_GRACE), (20_000_000_000, 300), (10**12, LONGEST_GRACE)],
    ids=["a small one", "20 GB at 200 MB/s, three times", "a huge one"],
)
def test_the_grace_to_save_follows_from_the_checkpoints_size(checkpoint_bytes, seconds):
    assert grace_seconds(checkpoint_bytes) == seconds


def test_the_estimate_of_the_checkpoint_reaches_the_pod():
    full = pretrain_job(stage="Full")
    assert pod(full)["terminationGracePeriodSeconds"] > pod(pretrain_job())["terminationGracePeriodSeconds"]


def test_the_deadline_covers_all_attempts():
    resource = pretrain_job(activeDeadlineSeconds=1000)
    first = Attempt(number=1, started=NOW, ended=later(400), reason="Crashed", exit_code=1)
    tried = with_status(resource, Status(attempts=[first]))
    assert children(resource)["Job"]["spec"]["activeDeadlineSeconds"] == 1000
    assert children(tried, now=later(1000))["Job"]["spec"]["activeDeadlineSeconds"] == 600
    assert "activeDeadlineSeconds" not in children(pretrain_job())["Job"]["spec"]


def test_on_one_machine_the_same_objects_carry_its_paths():
    made = children(pretrain_job(compute={"nodes": 2}), site=LAPTOP)
    config = json.loads(made["ConfigMap"]["data"]["job.json"])
    assert config["workspace"]["path"] == "/home/me/.herdsman/volumes/pj-zh/pretrainjobs/zh"
    assert config["launch"]["masterAddress"] == "127.0.0.1"
    assert 29500 <= config["launch"]["masterPort"] < 29600
    command = made["Job"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[0] == "/venv/bin/python"
    assert command[-1] == "/home/me/.herdsman/configs/pj-zh-1.json"
