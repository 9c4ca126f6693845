"""Deletes the typed API and model classes of the Kubernetes client that nothing has imported: 100 MB of generated code.

Herdsman speaks JSON to the API server through the client's connection and configuration, and kopf uses three models.
The probe is the imports below: what they load, stays. Run with the interpreter of the environment to trim.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

USED = ("kopf", "kubernetes.config", "kubernetes.client", "kubernetes.aio.config", "kubernetes.aio.client")
GENERATED = ("client.api", "client.models", "aio.client.api", "aio.client.models")


def trim() -> int:
    """Delete the modules and return how many bytes they took."""
    for name in USED:
        importlib.import_module(name)
    freed = 0
    for package in GENERATED:
        spec = importlib.util.find_spec(f"kubernetes.{package}")
        if spec is None or spec.origin is None:
            sys.exit(f"kubernetes.{package} does not exist any more: look at what the client is made of now")
        for module in Path(spec.origin).parent.glob("*.py"):
            if module.stem == "__init__" or f"kubernetes.{package}.{module.stem}" in sys.modules:
                continue
            for file in (module, Path(importlib.util.cache_from_source(str(module)))):
                if file.exists():
                    freed += file.stat().st_size
                    file.unlink()
    return freed


if __name__ == "__main__":
    sys.stdout.write(f"deleted {trim() / 1e6:.0f} MB of the Kubernetes client\n")
