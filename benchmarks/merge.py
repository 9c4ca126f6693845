"""Merging beside peft, beside the separate steps that people take, and beside a plain copy of the same bytes.

    python benchmarks/merge.py --layers 16 --record benchmarks/merge.md

Every way is a process of its own, with the files it reads out of the page cache before it begins and what it writes on
the disk before it ends: `dd` of the bytes that the single merge writes; a base and one adapter to Hugging Face weights,
ours and peft's; a base and two adapters to Q8_0, ours in one pass and in separate steps (peft, peft, F16, quantise by
llama.cpp; the F16 file is written by ours, which is kind to the separate steps). Wall time is that of the work without
loading Python libraries; memory is the highest RssAnon.

Needs about 0.9 GB, and 1.25 GB for each layer, on the volume of --directory. The goals stand beside the figures; the
exit code is 1 where one is missed.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from herdsman_trainer.weights.reading import open_model_weights

HERE = Path(__file__).resolve().parent
Q8 = '{"gguf": [{"type": "Q8_0"}]}'
F16 = '{"gguf": [{"type": "F16"}]}'
INPUTS = ("base", "base-tokenizer", "pretrained", "tuned")
MIB = float(1 << 20)
COMPARED = 1 << 22
"""Values of each tensor that are compared."""


def run(*command: str | Path, reads: list[Path]) -> dict[str, float]:
    """Run a stage, its inputs out of the page cache; returns its figures with the peak of its anonymous memory."""
    for path in reads:
        forget(path)
    process = subprocess.Popen(
        [sys.executable, HERE / "merge_stages.py", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    peak = [0]
    watcher = threading.Thread(target=watch, args=(process, peak))
    watcher.start()
    out, error = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command[0]} failed:\n{error[-3000:]}")
    return {**json.loads(out.strip().splitlines()[-1]), "anonymous": peak[0]}


def watch(process: subprocess.Popen, peak: list[int]) -> None:
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        found = [int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon")]
        peak[0] = max(peak[0], *found, 0)
        time.sleep(0.02)


def forget(path: Path) -> None:
    """Take a file, or the files of a directory, out of the page cache."""
    for file in [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def copy(source: Path, target: Path) -> dict[str, float]:
    """Copy the weights of a directory with dd, each file fsynced."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    forget(source)
    files = sorted(source.glob("*.safetensors"))
    started = time.monotonic()
    for file in files:
        command = ["dd", f"if={file}", f"of={target / file.name}", "bs=8M", "conv=fsync", "status=none"]
        subprocess.run(command, check=True)
    seconds = time.monotonic() - started
    size = sum(file.stat().st_size for file in files)
    shutil.rmtree(target)
    return {"seconds": seconds, "read": size, "written": size, "anonymous": 0}


def together(*steps: dict[str, float]) -> dict[str, float]:
    total = {name: sum(step[name] for step in steps) for name in ("seconds", "read", "written")}
    return {**total, "anonymous": max(step["anonymous"] for step in steps)}


def compare_weights(ours: Path, theirs: Path) -> dict[str, float]:
    """Return the share of equal values, and the largest difference in units of the stored type at that value."""
    equal = total = 0
    units = 0.0
    with open_model_weights(ours) as one, open_model_weights(theirs) as other:
        if set(one.specs) != set(other.specs):
            raise SystemExit("the merges have different tensors")
        for name in one.specs:
            a, b = (files.tensor(name).flatten()[:COMPARED].float() for files in (one, other))
            equal += int((a == b).sum())
            total += a.numel()
            unit = torch.maximum(a.abs(), b.abs()).clamp_min(2.0**-14).log2().floor().exp2() * 2.0**-10
            units = max(units, float(((a - b).abs() / unit).max()))
    return {"equal": equal / total, "units": units}


def compare_gguf(ours: Path, theirs: Path) -> dict[str, float]:
    """Return the share of equal values, and the largest difference as a share of the tensor's largest value."""
    one, other = ({tensor.name: tensor for tensor in GGUFReader(path).tensors} for path in (ours, theirs))
    if set(one) != set(other):
        raise SystemExit("the GGUF files have different tensors")
    equal = total = 0
    worst = 0.0
    for name, tensor in one.items():
        rows = max(1, COMPARED // int(tensor.shape[0]))
        pair = [dequantize(each.data[:rows], each.tensor_type) for each in (tensor, other[name])]
        equal += int(numpy.sum(pair[0] == pair[1]))
        total += pair[0].size
        worst = max(worst, float(numpy.abs(pair[0] - pair[1]).max() / numpy.abs(pair[1]).max()))
    return {"equal": equal / total, "difference": worst}


def measure(root: Path) -> dict[str, Any]:
    """Measure every way; results are removed as soon as nothing needs them."""
    base, first, second = root / "base", root / "pretrained", root / "tuned"
    figures: dict[str, Any] = {}

    def say(name: str, found: dict[str, float]) -> None:
        figures[name] = found
        sys.stdout.write(f"{name}: {json.dumps({key: round(value, 3) for key, value in found.items()})}\n")
        sys.stdout.flush()

    for each in ("ours", "peft", "second", "f16", "q8", "steps-q8", "copy"):
        shutil.rmtree(root / each, ignore_errors=True)
    say("ours", run("ours", root / "ours", base, first, reads=[base, first]))
    say("dd", copy(root / "ours/artifact", root / "copy"))
    say("peft", run("peft", root / "peft", base, first, reads=[base, first]))
    say("weights", compare_weights(root / "ours/artifact", root / "peft"))
    shutil.rmtree(root / "ours")
    say(
        "ours, two adapters to Q8_0",
        run("ours", root / "q8", base, first, second, "--outputs", Q8, reads=[base, first, second]),
    )
    step_two = run("peft", root / "second", root / "peft", second, reads=[root / "peft", second])
    shutil.rmtree(root / "peft")
    step_three = run("ours", root / "f16", root / "second", "--outputs", F16, reads=[root / "second"])
    shutil.rmtree(root / "second")
    f16 = root / "f16/artifact/gguf/merged-F16.gguf"
    step_four = run("quantise", root / "steps-q8/merged.gguf", f16, reads=[f16])
    shutil.rmtree(root / "f16")
    for number, step in enumerate((step_two, step_three, step_four), 2):
        say(f"step {number}", step)
    say("separate steps to Q8_0", together(figures["peft"], step_two, step_three, step_four))
    say("q8_0", compare_gguf(root / "q8/artifact/gguf/merged-Q8_0.gguf", root / "steps-q8/merged.gguf"))
    shutil.rmtree(root / "q8")
    shutil.rmtree(root / "steps-q8")
    return figures


def goals(figures: dict[str, Any]) -> dict[str, tuple[float, float, bool]]:
    """Return what was reached, the goal, and whether it was."""
    ours, peft, dd = figures["ours"], figures["peft"], figures["dd"]
    chain, steps = figures["ours, two adapters to Q8_0"], figures["separate steps to Q8_0"]

    def bytes_of(figure: dict[str, float]) -> float:
        return figure["read"] + figure["written"]

    rate = (dd["seconds"] / ours["seconds"]) * (ours["written"] / dd["written"])
    at_least = {
        "times as fast as peft": (peft["seconds"] / ours["seconds"], 3.0),
        "of dd's rate": (rate, 0.8),
        "two adapters to Q8_0: times as fast as separate steps": (steps["seconds"] / chain["seconds"], 5.0),
        "two adapters to Q8_0: times fewer bytes": (bytes_of(steps) / bytes_of(chain), 3.5),
    }
    memory = max(ours["anonymous"], chain["anonymous"]) / MIB
    reached = {name: (round(value, 2), goal, value >= goal) for name, (value, goal) in at_least.items()}
    return {**reached, "anonymous memory, MiB, at most": (round(memory), 400.0, memory <= 400)}


def table(figures: dict[str, Any]) -> str:
    names = ("dd", "ours", "peft", "ours, two adapters to Q8_0", "separate steps to Q8_0")
    lines = ["| | seconds | read, MiB | written, MiB | anonymous, MiB |", "| --- | ---: | ---: | ---: | ---: |"]
    for name in names:
        found = figures[name]
        sizes = " | ".join(f"{found[key] / MIB:,.0f}" for key in ("read", "written", "anonymous"))
        lines.append(f"| {name} | {found['seconds']:.1f} | {sizes} |")
    lines += ["", "| goal | reached | at least |", "| --- | ---: | ---: |"]
    for name, (value, goal, reached) in goals(figures).items():
        lines.append(f"| {name} | {value:g}{'' if reached else ' (missed)'} | {goal:g} |")
    weights, q8 = figures["weights"], figures["q8_0"]
    lines += [
        "",
        f"Of the values of ours and peft's merge {weights['equal']:.2%} are the same, the others differ by at most "
        f"{weights['units']:.1f} units in the last place of float16: peft rounds the product and then the sum, ours "
        f"the sum. Of the Q8_0 values {q8['equal']:.2%} are the same; the others differ by at most "
        f"{q8['difference']:.2%} of the largest, as the separate steps round to float16 twice more.",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16, help="of the 7B's 32; 16 need 21 GB")
    parser.add_argument("--width", type=int, default=4096, help="4096 is the 7B's; narrower ones are for trying it out")
    parser.add_argument("--directory", type=Path, default=Path("build/merge-benchmark"), help="where the files go")
    parser.add_argument("--keep", action="store_true", help="leave model and adapters there for the next run")
    parser.add_argument("--record", type=Path, help="the file to write the figures to")
    arguments = parser.parse_args()
    root = arguments.directory.resolve()
    root.mkdir(parents=True, exist_ok=True)
    inputs = [
        sys.executable,
        HERE / "merge_inputs.py",
        root,
        f"--layers={arguments.layers}",
        f"--width={arguments.width}",
    ]
    subprocess.run(inputs, check=True)
    load = os.getloadavg()[0]
    figures = measure(root)
    if not arguments.keep:
        for made in INPUTS:
            shutil.rmtree(root / made)
        (root / "inputs.txt").unlink()
    reached = goals(figures)
    document = {"layers": arguments.layers, "width": arguments.width, **figures, "goals": reached}
    sys.stdout.write(f"\n{table(figures)}\n\n{json.dumps(document)}\n")
    if arguments.record:
        shape = f"{arguments.layers} of 32 layers of the 7B shape" if arguments.width == 4096 else "a small shape"
        machine = f"{os.cpu_count()} cores ({platform.machine()}), load {load:.1f} before"
        when = f"{datetime.now(UTC):%Y-%m-%d}, {shape}, {machine}."
        head = "# Merging\n\nWritten by `make bench-merge`; what is measured, and how, says [merge.py](merge.py).\n"
        arguments.record.write_text(f"{head}\n{when}\n\n{table(figures)}\n\n```json\n{json.dumps(document)}\n```\n")
    return 0 if all(met for _, _, met in reached.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
