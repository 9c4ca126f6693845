"""Tokenising a corpus beside sentencepiece's own speed, and beside the data path of the original.

    python benchmarks/tokenize --mebibytes 256 --record benchmarks/tokenize.md

On one core and on two, each way as a process of its own that is bound to so many cores: sentencepiece alone (lines in
memory to lists of ids, which are thrown away), ours from a file to a finished cache (digest of the file, reading,
splitting, encoding, held-out side, duplicates, writing, digests of what was written, flushing it to the disk), and the
original's way (`datasets`, a slow tokenizer, maps in as many processes; on a part of the text, because it takes long;
in an environment of its own, which is made where it is not there). The best of --rounds counts, in turns. Memory is the
highest sum of RssAnon over a process and its children.

The goals stand beside the figures; the exit code is 1 where one is missed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from corpus import write_text, write_tokenizer

HERE = Path(__file__).resolve().parent
MIB = float(1 << 20)
PART_MIB = 4
"""How much text the original's way gets."""
Figures = dict[str, float]


def run(python: Path, script: str, *arguments: object, cores: int) -> Figures:
    """Run a way on its cores; returns its figures with the peak of its memory."""
    bound = sorted(os.sched_getaffinity(0))[:cores]
    process = subprocess.Popen(
        [python, HERE / script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(cores), "HF_HUB_OFFLINE": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, bound),
    )
    peak = [0]
    watcher = threading.Thread(target=watch, args=(process, peak))
    watcher.start()
    out, error = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{script} failed:\n{error[-3000:]}")
    return {**json.loads(out.strip().splitlines()[-1]), "anonymous": peak[0]}


def watch(process: subprocess.Popen, peak: list[int]) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], sum(map(anonymous, [process.pid, *children(process.pid)])))
        time.sleep(0.05)


def children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in found:
            yield child
            yield from children(child)


def anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))


def original_python(root: Path) -> Path | None:
    """The interpreter of the original's environment; None where it cannot be made."""
    place = root / "original"
    python = place / "bin" / "python"
    done = place / ".complete"
    if not done.is_file():
        venv.create(place, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet", "-r", HERE / "original.txt"]
        if subprocess.run(install, check=False).returncode:
            sys.stderr.write("The original's environment cannot be installed: its way is left out.\n")
            return None
        done.touch()
    return python


def beginning(text: Path, target: Path, mebibytes: int) -> Path:
    """Write the first lines of the text."""
    with text.open("rb") as source:
        data = source.read(mebibytes << 20)
    target.write_bytes(data[: data.rfind(b"\n") + 1])
    return target


def best(rounds: list[Figures]) -> Figures:
    """The round that took the least time, with the memory of the one that took most."""
    return {**min(rounds, key=lambda each: each["seconds"]), "anonymous": max(each["anonymous"] for each in rounds)}


def measure(root: Path, rounds: int) -> dict[str, Any]:
    text, tokenizer = root / "text.txt", root / "tokenizer"
    size = text.stat().st_size
    figures: dict[str, Any] = {}
    ours = Path(sys.executable)
    for cores in (1, 2) if len(os.sched_getaffinity(0)) > 1 else (1,):
        runs: dict[str, list[Figures]] = {"sentencepiece": [], "ours": []}
        for _ in range(rounds):
            for way, found in runs.items():
                found.append(run(ours, "ways.py", way, text, tokenizer, root / "cache", cores, cores=cores))
                print(f"{way}, {cores}: {size / MIB / found[-1]['seconds']:.1f} MiB/s", flush=True)
        figures |= {f"{way}, {cores}": {**best(found), "bytes": size} for way, found in runs.items()}
    python = original_python(root)
    if python is not None:
        part = beginning(text, root / "part.txt", PART_MIB)
        cores = min(2, len(os.sched_getaffinity(0)))
        found = run(python, "original.py", part, tokenizer, root / "original-out", cores, cores=cores)
        figures[f"original, {cores}"] = {**found, "bytes": part.stat().st_size}
    return figures


def rate(figures: Figures) -> float:
    return figures["bytes"] / MIB / figures["seconds"]


def goals(figures: dict[str, Any]) -> dict[str, tuple[float, float, bool]]:
    reached: dict[str, tuple[float, float, bool]] = {}
    for cores in (1, 2):
        if f"ours, {cores}" in figures:
            share = rate(figures[f"ours, {cores}"]) / rate(figures[f"sentencepiece, {cores}"])
            reached[f"of sentencepiece's own speed, cores: {cores}"] = (round(share, 3), 0.9, share >= 0.9)
    for cores in (1, 2):
        if f"original, {cores}" in figures:
            times = rate(figures[f"ours, {cores}"]) / rate(figures[f"original, {cores}"])
            reached[f"times as fast as the original, cores: {cores}"] = (round(times, 1), 20.0, times >= 20)
    one = figures["ours, 1"]
    stored = one["written"] / one["tokens"]
    reached["bytes a token on disk, with where documents start, at most"] = (round(stored, 3), 2.2, stored <= 2.2)
    memory = max(figures[name]["anonymous"] for name in figures if name.startswith("ours")) / MIB
    reached["memory, MiB, at most"] = (round(memory), 800.0, memory <= 800)
    return reached


def table(figures: dict[str, Any]) -> str:
    lines = ["| way, cores | MiB | seconds | MiB/s | million tokens/s | bytes a token | memory, MiB |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, found in figures.items():
        stored = f"{found['written'] / found['tokens']:.2f}" if found["written"] else ""
        cells = [f"{found['bytes'] / MIB:,.0f}", f"{found['seconds']:.2f}", f"{rate(found):.1f}"]
        cells += [f"{found['tokens'] / found['seconds'] / 1e6:.2f}", stored, f"{found['anonymous'] / MIB:,.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| goal | reached | wanted |", "| --- | ---: | ---: |"]
    for name, (value, goal, reached) in goals(figures).items():
        lines.append(f"| {name} | {value:g}{'' if reached else ' (missed)'} | {goal:g} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=256, help="of text")
    parser.add_argument("--rounds", type=int, default=3, help="of each way, of which the best counts")
    parser.add_argument("--directory", type=Path, default=Path("build/tokenize-benchmark"), help="where the files go")
    parser.add_argument("--record", type=Path, help="the file to write the figures to")
    arguments = parser.parse_args()
    root = arguments.directory.resolve()
    root.mkdir(parents=True, exist_ok=True)
    write_text(root / "text.txt", arguments.mebibytes)
    tokenizer = write_tokenizer(root / "tokenizer", root / "text.txt")
    load = os.getloadavg()[0]
    figures = measure(root, arguments.rounds)
    reached = goals(figures)
    document = {"tokenizer": tokenizer, "figures": figures, "goals": reached}
    print(f"\n{table(figures)}\n\n{json.dumps(document)}")
    if arguments.record:
        machine = f"{os.cpu_count()} cores ({platform.machine()}), load {load:.1f} before"
        when = f"{datetime.now(UTC):%Y-%m-%d}, {machine}. Chinese text; the tokenizer is {tokenizer}."
        head = "# Tokenising\n\nWritten by `make bench-tokenize`; what is measured, and how, says "
        head += "[its source](tokenize/__main__.py).\n"
        arguments.record.write_text(f"{head}\n{when}\n\n{table(figures)}\n\n```json\n{json.dumps(document)}\n```\n")
    return 0 if all(met for _, _, met in reached.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
