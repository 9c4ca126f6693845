"""The engine vllm: its container beside ours, and what it is started with."""

import json

import pytest

from builders import CLUSTER, LAPTOP, finished, lora_merge, model_server, sft_job, world
from herdsman.core.plan import plan

BASE = finished(lora_merge())
LAW = finished(sft_job("law"), vocab_size=None, base_digest=BASE.status.artifact.digest)
GPUS = {"engine": "vllm", "compute": {"gpusPerNode": 2, "resources": {"cpu": "8", "memory": "64Gi"}}}


def planned(site=CLUSTER, **spec):
    return plan(model_server(**{**GPUS, **spec}), world(BASE, LAW), site)


def pod(**spec):
    made = planned(**spec)
    assert made.refused is None, made.refused
    (deployment,) = [child for child in made.children if child["kind"] == "Deployment"]
    return deployment["spec"]["template"]["spec"]


def config(**spec):
    made = planned(**spec)
    return json.loads(next(child for child in made.children if child["kind"] == "ConfigMap")["data"]["job.json"])


def arguments(**spec):
    """The options of vLLM's command and their values."""
    words = pod(**spec)["containers"][1]["command"]
    assert words[:2] == ["vllm", "serve"]
    return {word: words[place + 1 : place + 2] for place, word in enumerate(words) if word.startswith("--")}, words[2]


def test_our_container_stays_what_clients_see_and_vllm_has_the_gpus():
    ours, theirs = pod()["containers"]
    assert (ours["name"], theirs["name"]) == ("server", "vllm")
    assert ours["image"] == CLUSTER.server_image
    assert theirs["image"] == CLUSTER.vllm_image
    assert "nvidia.com/gpu" not in ours["resources"].get("limits", {})
    assert theirs["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": "2"}
    assert "ports" not in theirs, "nobody reaches it from outside the pod"
    assert {"startupProbe", "livenessProbe"} <= theirs.keys()
    assert "httpGet" not in theirs["livenessProbe"], "it listens where the kubelet does not reach it"


def test_vllm_keeps_to_the_restricted_standard_and_sees_the_model_but_not_our_secrets():
    spec = pod(apiKey={"secret": {"name": "keys", "key": "api"}})
    ours, theirs = spec["containers"]
    assert theirs["securityContext"] == ours["securityContext"]
    mounts = {mount["mountPath"]: mount for mount in theirs["volumeMounts"]}
    assert all(mounts[path]["readOnly"] for path in mounts if path.startswith("/volumes/"))
    assert any(path.startswith("/volumes/") for path in mounts)
    assert {"/tmp", "/dev/shm"} <= mounts.keys()
    assert not any("herdsman" in path for path in mounts)
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in theirs["env"]


def test_it_is_asked_for_what_the_spec_says():
    given, model = arguments(
        limits={"parallel": 128},
        vllm={"maxModelLength": 4096, "memoryPercent": 80, "extraArgs": ["--enforce-eager"]},
        modelName="zh/llama",
    )
    assert model == config()["model"]["path"]
    assert given["--served-model-name"] == ["zh/llama"]
    assert given["--tensor-parallel-size"] == ["2"]
    assert given["--max-model-len"] == ["4096"]
    assert given["--max-num-seqs"] == ["128"]
    assert given["--gpu-memory-utilization"] == ["0.80"]
    assert given["--host"] == ["127.0.0.1"]
    assert "--enforce-eager" in given
    assert "--enable-lora" not in given
    assert "--quantization" not in given


def test_hot_adapters_and_four_bits_are_options():
    hot = [{"name": "law", "adapter": {"sftJob": "law"}}]
    given, _ = arguments(hotAdapters=hot, quantisation="int4", vllm={"maxLoraRank": 16})
    assert given["--max-loras"] == ["4"]
    assert given["--max-lora-rank"] == ["16"]
    assert "--enable-lora" in given
    assert given["--quantization"] == ["bitsandbytes"]


@pytest.mark.parametrize(
    ("spec", "port"), [({}, 8001), ({"port": 8001}, 8002), ({"port": 8001, "metricsPort": 8002}, 8003)]
)
def test_our_container_knows_where_it_is_and_no_port_is_taken_twice(spec, port):
    assert config(**spec)["upstream"] == f"http://127.0.0.1:{port}"
    given, _ = arguments(**spec)
    assert given["--port"] == [str(port)]
    assert config(**spec)["device"] == "cpu", "our container computes nothing"


def test_it_goes_on_until_our_container_has_answered():
    (hook,) = [pod(port=9000)["containers"][1]["lifecycle"]["preStop"]["exec"]["command"]]
    assert hook[:2] == ["python3", "-c"]
    assert "9000" in hook[2]


def test_the_image_can_be_another_one():
    assert pod(vllm={"image": "mirror.example.com/vllm:1"})["containers"][1]["image"] == "mirror.example.com/vllm:1"


def test_dollars_in_arguments_are_not_expanded():
    assert "--x=$$(HOME)" in pod(vllm={"extraArgs": ["--x=$(HOME)"]})["containers"][1]["command"]


REFUSED = {
    "on one machine": (LAPTOP, {}, "herdsman run starts no containers"),
    "with eight bits": (CLUSTER, {"quantisation": "int8"}, "no 8 bits"),
    "with adapters that are to be merged": (
        CLUSTER,
        {"adapters": [{"sftJob": "law"}]},
        "Merge|reads the model as it is",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused(what):
    import re

    site, spec, says = REFUSED[what]
    refused = planned(site=site, **spec).refused
    assert re.search(says, f"{refused.message} {refused.hint}")
