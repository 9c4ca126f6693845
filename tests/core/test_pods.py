"""What a site says about all pods: registries that need a secret, when to pull, which hub may be asked."""

from dataclasses import replace

import pytest

from builders import CLUSTER, finished, lora_merge, model_import, model_server, pretrain_job, volume, world
from herdsman.core.plan import plan

MIRROR = replace(
    CLUSTER,
    image_pull_policy="Always",
    image_pull_secrets=("mirror", "other"),
    hub_endpoint="https://hub.example.com/$(HOME)",
)
RESOURCES = {
    "a run": (pretrain_job(), finished(model_import())),
    "a server": (model_server(), finished(lora_merge())),
}


def pod_of(what, site):
    resource, *others = RESOURCES[what]
    children = plan(resource, world(*others, volumes=[volume("corpora"), *claims(others)]), site).children
    (workload,) = (child for child in children if child["kind"] in ("Job", "Deployment"))
    return workload["spec"]["template"]["spec"]


def claims(others):
    return [other.status.artifact.claim for other in others]


@pytest.mark.parametrize("what", RESOURCES)
def test_without_a_word_of_the_site_kubernetes_decides_and_no_hub_is_asked(what):
    pod = pod_of(what, CLUSTER)
    (container,) = pod["containers"]
    assert "imagePullSecrets" not in pod
    assert "imagePullPolicy" not in container
    assert container["env"] == [{"name": "HF_HUB_OFFLINE", "value": "1"}]


@pytest.mark.parametrize("what", RESOURCES)
def test_a_mirror_with_its_secrets_and_its_hub(what):
    pod = pod_of(what, MIRROR)
    (container,) = pod["containers"]
    assert pod["imagePullSecrets"] == [{"name": "mirror"}, {"name": "other"}]
    assert container["imagePullPolicy"] == "Always"
    assert container["env"] == [{"name": "HF_ENDPOINT", "value": "https://hub.example.com/$$(HOME)"}]
