"""The engine vllm: a container of vLLM's own image beside ours, which stays what clients see (docs/decisions/0022).

vLLM listens on the pod's loopback only, so that keys, limits and the API are those of our server.
"""

from collections.abc import Mapping
from typing import Any

from herdsman.api.job_config import ServerConfig
from herdsman.api.v1alpha1.compute import Compute, Resources
from herdsman.api.v1alpha1.model_server import MAX_HOT_ADAPTERS, ModelServer, ModelServerSpec, Vllm
from herdsman.core import pods
from herdsman.core.environment import escaped
from herdsman.core.plan_types import Manifest
from herdsman.core.site import Site

CONTAINER = "vllm"
PORTS = (8001, 8002, 8003)
"""One of these is neither the API's nor the metrics'."""
GATEWAY = Resources(cpu="500m", memory="2Gi")
"""What our container takes; spec.compute.resources are vLLM's."""
LOADING_SECONDS = 1800
SHARED_MEMORY = "8Gi"
"""For NCCL, which is how the processes of several GPUs exchange what they compute."""
LORAS = (4, 8, 16, MAX_HOT_ADAPTERS)
"""Room for adapters: of these the next that is enough, so that one adapter more is seldom a new pod."""
ENVIRONMENT = {
    "HOME": "/tmp",  # noqa: S108 - an emptyDir of the pod's own
    "USER": "herdsman",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
}
_ASK = "import urllib.request as r; r.urlopen('http://127.0.0.1:{port}/health', timeout=5)"
_WAIT = """
import socket, time
while True:
    try:
        socket.create_connection(('127.0.0.1', {port}), 1).close()
        time.sleep(1)
    except OSError:
        break
"""


def port_beside(spec: ModelServerSpec, metrics_port: int) -> int:
    """Return the port of vLLM in a pod."""
    return next(port for port in PORTS if port not in (spec.port, metrics_port))


def gateway(compute: Compute) -> Compute:
    """Return what our own container asks for: no GPUs."""
    return compute.model_copy(update={"gpus_per_node": 0, "processes_per_node": None, "resources": GATEWAY})


def beside(pod: dict[str, Any], resource: ModelServer, config: ServerConfig, port: int, site: Site) -> dict[str, Any]:
    """Return the spec of the pod with vLLM's container in it."""
    spec = resource.spec
    chosen = spec.vllm or Vllm()
    (ours,) = pod["containers"]
    mounts = [mount for mount in ours["volumeMounts"] if mount["name"] in ("tmp", "shm") or _is_volume(mount)]
    container = {
        "name": CONTAINER,
        "image": chosen.image or site.vllm_image,
        "command": [escaped(word) for word in command(spec, config, port)],
        "env": [{"name": name, "value": value} for name, value in ENVIRONMENT.items()],
        "resources": pods.resources(spec.compute),
        "securityContext": ours["securityContext"],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
        **_probes(port),
        # It goes on until our container has answered what it has.
        "lifecycle": {"preStop": {"exec": {"command": _python(_WAIT.format(port=spec.port))}}},
    }
    if "imagePullPolicy" in ours:
        container["imagePullPolicy"] = ours["imagePullPolicy"]
    volumes = [_shared(volume) for volume in pod["volumes"]]
    return {**pod, "containers": [ours, container], "volumes": volumes}


def command(spec: ModelServerSpec, config: ServerConfig, port: int) -> list[str]:
    """Return what vLLM is started with."""
    chosen = spec.vllm or Vllm()
    words = ["vllm", "serve", config.model.path, "--served-model-name", config.model_name]
    words += ["--host", "127.0.0.1", "--port", str(port)]
    words += ["--tensor-parallel-size", str(spec.compute.gpus_per_node)]
    words += ["--gpu-memory-utilization", f"{chosen.memory_percent / 100:.2f}"]
    if chosen.max_model_length is not None:
        words += ["--max-model-len", str(chosen.max_model_length)]
    if spec.limits.parallel is not None:
        words += ["--max-num-seqs", str(spec.limits.parallel)]
    if spec.quantisation == "int4":
        words += ["--quantization", "bitsandbytes"]
    if spec.hot_adapters:
        room = next(count for count in LORAS if count >= len(spec.hot_adapters))
        words += ["--enable-lora", "--max-loras", str(room), "--max-lora-rank", str(chosen.max_lora_rank)]
    return [*words, *chosen.extra_args]


def _probes(port: int) -> dict[str, Any]:
    """It is asked from inside: nobody reaches it from elsewhere."""
    alive = {"exec": {"command": _python(_ASK.format(port=port))}, "timeoutSeconds": 10}
    return {
        "startupProbe": {**alive, "periodSeconds": 10, "failureThreshold": LOADING_SECONDS // 10},
        "livenessProbe": {**alive, "periodSeconds": 30, "failureThreshold": 4},
    }


def _python(code: str) -> list[str]:
    return ["python3", "-c", code]


def _is_volume(mount: Mapping[str, Any]) -> bool:
    return str(mount["name"]).startswith("volume-")


def _shared(volume: Manifest) -> Manifest:
    if volume["name"] != "shm":
        return volume
    return {**volume, "emptyDir": {**volume["emptyDir"], "sizeLimit": SHARED_MEMORY}}
