"""One way of merging, in a process of its own, for benchmarks/merge.py.

    python benchmarks/merge_stages.py ours  OUT BASE ADAPTER... --outputs '{"huggingface": {}}'
    python benchmarks/merge_stages.py peft  OUT BASE ADAPTER
    python benchmarks/merge_stages.py quantise OUT.gguf IN.gguf

The last line of the output is JSON: seconds of the work itself, without loading the libraries, and the bytes that
passed between this process and the disk.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path


def ours(out: Path, sources: list[Path], outputs: str) -> None:
    """Run the step LoRAMerge as a pod runs it."""
    from herdsman.api.job_config import Input, LoRAMergeConfig, Owner, WorkspaceDir
    from herdsman.api.v1alpha1.lora_merge import MergeOutputs
    from herdsman_trainer.__main__ import run_step
    from herdsman_trainer.run_context import RunContext
    from herdsman_trainer.steps import lora_merge  # noqa: F401 - its libraries are loaded before the clock starts

    inputs = [Input(root=str(path), path=str(path), field=f"spec.{path.name}") for path in sources]
    workspace = WorkspaceDir(root=str(out.parent), path=str(out), claim="benchmark", relative=out.name)
    config = LoRAMergeConfig(
        owner=Owner(kind="LoRAMerge", name="merged", uid=out.name),
        attempt=1,
        workspace=workspace,
        model=inputs[0],
        adapters=inputs[1:],
        outputs=MergeOutputs.model_validate_json(outputs),
    )
    measured(lambda: run_step(config, RunContext(config, rank=0)))


def peft(out: Path, sources: list[Path]) -> None:
    """Merge as peft's documentation says, with the larger vocabulary of the adapter, and save."""
    import torch
    from peft import PeftModel
    from safetensors import safe_open
    from transformers import LlamaForCausalLM

    base, adapter = sources

    def work() -> None:
        model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float16)
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
            rows = file.get_slice("base_model.model.model.embed_tokens.weight").get_shape()[0]
        model.resize_token_embeddings(rows, mean_resizing=False)
        PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out, max_shard_size="4GB")
        (out / "tokenizer.model").write_bytes((adapter / "tokenizer.model").read_bytes())
        durable(out)

    measured(work)


def quantise(out: Path, source: Path) -> None:
    """Let llama.cpp quantise a GGUF file to Q8_0."""
    from cyllama.llama import llama_cpp

    def work() -> None:
        settings = llama_cpp.LlamaModelQuantizeParams()
        settings.ftype = 7  # LLAMA_FTYPE_MOSTLY_Q8_0
        settings.nthread = os.cpu_count() or 1
        out.parent.mkdir(parents=True, exist_ok=True)
        llama_cpp.model_quantize(str(source), str(out), settings)
        durable(out.parent)

    measured(work)


def durable(directory: Path) -> None:
    """Wait until everything in the directory is on the disk, as ours does before it says that it is done."""
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def measured(work) -> None:
    before, started = moved(), time.monotonic()
    work()
    seconds = time.monotonic() - started
    after = moved()
    sys.stdout.write(
        "\n" + json.dumps({"seconds": seconds, **{name: after[name] - before[name] for name in after}}) + "\n"
    )


def moved() -> dict[str, int]:
    """Bytes that this process has had read from the disk, and has caused to be written to it."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return {"read": int(fields["read_bytes"]), "written": int(fields["write_bytes"])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("ours", "peft", "quantise"))
    parser.add_argument("out", type=Path)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--outputs", default='{"huggingface": {}}')
    arguments = parser.parse_args()
    if arguments.stage == "ours":
        ours(arguments.out, arguments.sources, arguments.outputs)
    elif arguments.stage == "peft":
        peft(arguments.out, arguments.sources)
    else:
        quantise(arguments.out, arguments.sources[0])
