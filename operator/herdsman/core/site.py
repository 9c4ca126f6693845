"""Facts outside the spec: where volumes are mounted, which images and interpreter run, the defaults."""

from dataclasses import dataclass, field
from zlib import crc32


@dataclass(frozen=True)
class Site:
    """The platform, as far as plans depend on it; the defaults are those of a cluster."""

    volumes_root: str = "/volumes"
    """Every claim is mounted at <volumes_root>/<claim>."""
    config_file: str = "/etc/herdsman/job.json"
    """Where the ConfigMap {name} is found; `{name}` is replaced."""
    adapters_file: str = "/etc/herdsman-adapters/job.json"
    """The same for a server's list of hot adapters; not below the configuration, which is a volume too."""
    python: str = "python"
    """The interpreter in the image."""
    trainer_image: str = "herdsman/trainer:0.1.0"
    server_image: str = "herdsman/server:0.1.0"
    activator_image: str = "herdsman/operator:0.1.0"
    """The image that holds requests for servers without replicas: the operator's own."""
    vllm_image: str = "vllm/vllm-openai:v0.33.0"
    """vLLM's own image, for servers with the engine vllm."""
    image_pull_policy: str | None = None
    """When the nodes pull these images: Always, IfNotPresent or Never; Kubernetes' own rule unless set."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets for pulling them, beside those of the namespace's ServiceAccount; each namespace needs its own copy."""
    hub_endpoint: str | None = None
    """The model hub that pods may ask (HF_ENDPOINT); unless set, imports from a hub ask the public one, others none."""
    master_address: str = "{job}-0.{job}"
    """Where rank 0 of a Job of several pods answers; `{job}` is replaced."""
    master_ports: range = field(default_factory=lambda: range(29500, 29501))
    """Ports for the rendezvous; a Job takes one by the hash of its name."""
    metrics_port: int = 9400
    """The port of /metrics of trainers, and of servers that name no other; 0 serves none."""
    local: bool = False
    """Whether this is one machine without a cluster: claims that are written are made as directories."""

    @property
    def server_host(self) -> str:
        """The address a server listens on: all of the pod's, but nothing beyond this machine without a cluster."""
        return "127.0.0.1" if self.local else "0.0.0.0"  # noqa: S104 - a server in a pod answers its Service

    def mount(self, claim: str) -> str:
        """Return the directory where a claim is mounted."""
        return f"{self.volumes_root}/{claim}"

    def config_path(self, config_map: str) -> str:
        """Return the path of the configuration in the ConfigMap of this name."""
        return self.config_file.replace("{name}", config_map)

    def adapters_path(self, config_map: str) -> str:
        """Return the path of the list of hot adapters in the ConfigMap of this name."""
        return self.adapters_file.replace("{name}", config_map)

    def rendezvous(self, job: str) -> tuple[str, int]:
        """Return the address and port of rank 0 of a Job."""
        port = self.master_ports[crc32(job.encode()) % len(self.master_ports)]
        return self.master_address.replace("{job}", job), port
