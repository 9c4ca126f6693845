"""Serving: the running batch through the gateway and called directly, and beside one `generate` at a time.

    python benchmarks/serve.py --device cuda --shape 7b     # a bare GPU: random weights, made there; about 4 minutes
    python benchmarks/serve.py --shape 135m                 # this CPU

Clients ask for answers of --tokens tokens to prompts of random lengths, with the sampling that is the server's default.
In closed loops each of c clients asks again when it has its answer; in a Poisson process clients come at a mean rate,
whatever becomes of the others. "Directly" calls the engine from threads of the same process; the gateway is the
server's own, asked over HTTP by another process. "As the original" is what Chinese-LLaMA-Alpaca's server does:
`generate` of transformers, one request after the other. What the gateway adds to a first token is measured with one
client, alternating with direct calls: of an engine that answers at once, so that nothing but the gateway is measured,
and of the real one, which on a CPU has its threads on the gateway's cores.

On a CPU llama.cpp's own server (xllamacpp) is measured beside our engine llamacpp on the same GGUF file, where it is
installed. The goals stand beside the figures; the exit code is 1 where one is missed.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import serve_parts as parts
import torch

from herdsman_server.batching.lora import LowRank, ResidentAdapter
from herdsman_server.engine import Sampling
from herdsman_server.transformers_engine import engine_of

PAIRS, PAIRS_AT_ONCE = 150, 1000
"""Requests of each kind for what the gateway adds, to the real engine and to one that answers at once."""
WARM_UP = 100
"""Requests before those."""
TIMES_FASTER, GATEWAY_MS = 20.0, 2.0
"""The goals."""
COLUMNS = ("tokens a second", "first token, ms p50", "first token, ms p99", "between, ms p50", "between, ms p99")


def as_the_original(model: Any, asked: Sequence[Sequence[int]], sampling: Sampling, count: int) -> dict[str, Any]:
    """Answer some requests one after the other, as the original's server does."""
    from transformers import GenerationConfig
    from transformers.generation.streamers import BaseStreamer

    class Stream(BaseStreamer):
        def __init__(self) -> None:
            self.pieces: list[tuple[float, int]] = []
            self.prompt_seen = False

        def put(self, value: torch.Tensor) -> None:
            if self.prompt_seen:
                self.pieces.append((time.monotonic(), value.numel()))
            self.prompt_seen = True

        def end(self) -> None:
            pass

    settings = GenerationConfig(
        max_new_tokens=sampling.max_tokens,
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
        eos_token_id=parts.EOS,
        pad_token_id=0,
    )
    found = []
    for number in range(count + 1):
        ids = torch.tensor([list(asked[number])], device=model.device)
        stream, start = Stream(), time.monotonic()
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings, streamer=stream)
        if number:  # the first one warms up
            found.append({"asked": start, "pieces": stream.pieces, "status": 200})
    seconds = found[-1]["pieces"][-1][0] - found[0]["asked"]
    measured = parts.figures({"began": found[0]["asked"], "requests": found}, seconds)
    return {**measured, "tokens a second": sum(len(each["pieces"]) for each in found) / seconds}


class AtOnce:
    """An engine whose answers are there when they are asked for."""

    parallel, context_length, broken = 1, 4096, None

    def generate(self, prompt: Sequence[int], sampling: Sampling, stop_ids: frozenset[int], on_token: Any) -> None:  # noqa: ARG002
        """Say as many tokens as are wanted."""
        for token in range(100, 100 + sampling.max_tokens):
            if not on_token(token):
                return


def added_by_the_gateway(
    engine: Any, port: int, prompt: Sequence[int], sampling: Sampling, pairs: int
) -> dict[str, float]:
    """Return what the way through the gateway adds to the first token, in ms; taken by turns."""
    client = parts.Client()
    short = replace(sampling, max_tokens=2)
    one = {"port": port, "path": "/v1/completions", "chunk": "openai", "bodies": [parts.body(prompt, short)]}
    ways: dict[str, list[float]] = {"directly": [], "gateway": []}
    for number in range(WARM_UP + pairs):
        both = {
            "directly": parts.directly(engine, 1, 0.0001, [prompt], short)["requests"],
            "gateway": client(kind="once", **one)["requests"],
        }
        if number >= WARM_UP:
            for way, (request, *_) in both.items():
                ways[way].append(1e3 * (request["pieces"][0][0] - request["asked"]))
    client.close()
    found = {f"{way}, ms p{percent}": parts.percentile(ways[way], percent) for way in ways for percent in (50, 99)}
    found["added, ms p50"] = found["gateway, ms p50"] - found["directly, ms p50"]
    found["added, ms p99"] = found["gateway, ms p99"] - found["directly, ms p99"]
    return found


def with_adapters(engine: Any, count: int, rank: int) -> list[str]:
    """Make random adapters on all projections resident."""
    shapes = {name: shape for name, shape in engine.model.linear_shapes.items() if "_proj" in name}
    like = engine.model.embedding
    for number in range(count):
        low = {
            name: LowRank(like.new_empty(rank, inputs).normal_(0, 0.01), like.new_empty(outputs, rank).normal_(0, 0.01))
            for name, (outputs, inputs) in shapes.items()
        }
        engine.adapters.load(ResidentAdapter(f"adapter-{number}", rank, low))
    return [f"adapter-{number}" for number in range(count)]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything and return it by what it is."""
    sampling = Sampling(max_tokens=options.tokens)
    found: dict[str, Any] = {}
    began = time.monotonic()
    with parts.gateway(AtOnce(), parts.Words(49953)) as port:
        found["gateway"] = added_by_the_gateway(AtOnce(), port, list(range(1, 17)), sampling, PAIRS_AT_ONCE)
    say(f"the gateway adds {found['gateway']['added, ms p99']:.2f} ms p99 to a first token that is there at once")
    model = parts.random_model(options.shape, options.device)
    asked = parts.prompts(model.config.vocab_size, *options.prompts)
    say(f"the model is made ({time.monotonic() - began:.1f} s)")
    found["as the original"] = as_the_original(model, asked, sampling, options.original)
    say(f"as the original: {found['as the original']['tokens a second']:.1f} tokens/s")
    began = time.monotonic()
    engine = engine_of(model, parallel=options.parallel, quantisation=options.quantisation, kv_tokens=options.kv_tokens)
    del model
    engine.record()
    found["startup"] = {"seconds": time.monotonic() - began, "recorded": engine._passes.graphs is not None}
    found["room, tokens"] = engine._passes.memory.tokens
    say(f"the engine is ready ({found['startup']['seconds']:.1f} s), recorded: {found['startup']['recorded']}")
    parts.directly(engine, min(options.clients[-1], options.parallel), 2.0, asked, sampling)
    for clients in options.clients:
        run = parts.directly(engine, clients, options.seconds, asked, sampling)
        found[f"directly, c = {clients}"] = parts.figures(run, options.seconds)
        say(f"directly, c = {clients}: {found[f'directly, c = {clients}']['tokens a second']:.1f} tokens/s")
    words = parts.Words(engine.model.vocabulary)
    with parts.gateway(engine, words) as port:
        found["gateway, real engine"] = added_by_the_gateway(engine, port, asked[0][:16], sampling, PAIRS)
        client = parts.Client()
        bodies = [parts.body(prompt, sampling) for prompt in asked]
        common = {
            "port": port,
            "path": "/v1/completions",
            "chunk": "openai",
            "bodies": bodies,
            "seconds": options.seconds,
        }
        for clients in options.clients:
            run = client(kind="closed", clients=clients, **common)
            found[f"gateway, c = {clients}"] = parts.figures(run, options.seconds)
            say(f"gateway, c = {clients}: {found[f'gateway, c = {clients}']['tokens a second']:.1f} tokens/s")
        most = found[f"gateway, c = {options.clients[-1]}"]["requests a second"]
        for percent in options.poisson:
            rate = max(0.1, most * percent / 100)
            run = client(kind="poisson", rate=rate, **common)
            found[f"gateway, Poisson, {rate:.1f} a second"] = parts.figures(run, options.seconds)
        client.close()
    if options.adapters:
        names = with_adapters(engine, options.adapters, options.rank)
        clients = options.clients[-1]

        def own(number: int) -> Sampling:
            return replace(sampling, adapter=names[number % len(names)])

        parts.directly(engine, clients, 2.0, asked, own)
        run = parts.directly(engine, clients, options.seconds, asked, own)
        found[f"directly, c = {clients}, {len(names)} adapters"] = parts.figures(run, options.seconds)
    engine.close()
    if options.device == "cuda":
        found["memory, GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def llama_cpp(options: argparse.Namespace) -> dict[str, Any]:
    """Measure our engine llamacpp, and the binding's own server on the same file."""
    from serve_gguf import beside_its_own_server

    with tempfile.TemporaryDirectory() as directory:
        return beside_its_own_server(Path(directory), options, say)


def goals(options: argparse.Namespace, found: dict[str, Any]) -> dict[str, tuple[float, float, bool]]:
    """Return what was reached, what was to be, and whether it was."""
    most = f"c = {options.clients[-1]}"
    times = found[f"directly, {most}"]["tokens a second"] / found["as the original"]["tokens a second"]
    through = found[f"gateway, {most}"]["tokens a second"] / found["as the original"]["tokens a second"]
    added = found["gateway"]["added, ms p99"]
    wanted: dict[str, tuple[float, float, bool]] = {}
    if options.device == "cuda":
        wanted[f"times as many tokens as the original's way, {most}"] = (times, TIMES_FASTER, times >= TIMES_FASTER)
        wanted["the same through the gateway"] = (through, TIMES_FASTER, through >= TIMES_FASTER)
    wanted["added by the gateway to a first token, ms p99, at most"] = (added, GATEWAY_MS, added <= GATEWAY_MS)
    return wanted


def report(options: argparse.Namespace, found: dict[str, Any], reached: dict[str, Any], load: float) -> str:
    """Return the page."""
    where = (
        torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} cores ({platform.machine()})"
    )
    if options.device == "cpu":
        where += f", load {load:.1f} before"
    bits = f", {options.quantisation}" if options.quantisation else ""
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {where}, shape {options.shape}{bits}, torch {torch.__version__}; answers of "
        f"{options.tokens} tokens to prompts of {options.prompts[0]} to {options.prompts[1]}.",
        "",
        f"| | {' | '.join(COLUMNS)} |",
        f"| --- |{' ---: |' * len(COLUMNS)}",
    ]
    rows = {name: figures for name, figures in found.items() if isinstance(figures, dict) and COLUMNS[0] in figures}
    for name, figures in rows.items():
        lines.append(f"| {name} | {' | '.join(f'{figures[column]:,.1f}' for column in COLUMNS)} |")
    lines += [
        "",
        f"A first token with one client, of an engine that answers at once: {by_both_ways(found['gateway'])}; of the "
        f"real one: {by_both_ways(found['gateway, real engine'])}. The engine was ready "
        f"{found['startup']['seconds']:.1f} s after the weights, with "
        f"{'passes' if found['startup']['recorded'] else 'no passes'} recorded and room for "
        f"{found['room, tokens']:,} tokens of conversations.",
        "",
        "| goal | reached | wanted |",
        "| --- | ---: | ---: |",
        *(
            f"| {name} | {got:.2f}{'' if met else ' (missed)'} | {want:g} |"
            for name, (got, want, met) in reached.items()
        ),
        "",
        "```json",
        json.dumps({"options": {name: value for name, value in vars(options).items() if name != "record"}, **found}),
        "```",
    ]
    return "\n".join(lines) + "\n"


def by_both_ways(ways: dict[str, float]) -> str:
    def told(way: str) -> str:
        return f"{ways[f'{way}, ms p50']:.2f} ms ({ways[f'{way}, ms p99']:.2f} p99)"

    return f"directly {told('directly')}, through the gateway {told('gateway')}"


def say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=sorted(parts.SHAPES), default="135m")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--parallel", type=int, help="answers the engine computes at once; the most clients unless set")
    parser.add_argument("--seconds", type=float, help="of each measurement (20)")
    parser.add_argument("--tokens", type=int, help="of an answer (128, on a CPU 32)")
    parser.add_argument("--prompts", type=int, nargs=2, help="shortest and longest prompt (32 256, on a CPU 16 64)")
    parser.add_argument("--poisson", type=int, nargs="*", default=[50, 80], help="percent of the closed loop's rate")
    parser.add_argument("--original", type=int, default=3, help="requests answered as the original does")
    parser.add_argument("--adapters", type=int, default=4, help="adapters that are mixed in one batch; 0 leaves it out")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--quantisation", choices=["int8", "int4"])
    parser.add_argument("--kv-tokens", type=int, help="room for conversations; what is left unless set")
    parser.add_argument("--gguf", action=argparse.BooleanOptionalAction, help="beside llama.cpp (on a CPU)")
    parser.add_argument("--record", type=Path, help="writes the figures into this page, below its first line")
    options = parser.parse_args()
    on_cpu = options.device == "cpu"
    options.parallel = options.parallel or options.clients[-1]
    options.seconds = options.seconds or 20.0
    options.tokens = options.tokens or (32 if on_cpu else 128)
    options.prompts = options.prompts or ([16, 64] if on_cpu else [32, 256])
    load = os.getloadavg()[0]
    found = measure(options)
    if on_cpu if options.gguf is None else options.gguf:
        found |= llama_cpp(options)
    reached = goals(options, found)
    page = report(options, found, reached, load)
    print(page)
    if options.record is not None:
        write(options, page)
    missed = [name for name, (_, _, met) in reached.items() if not met]
    # Threads of engines that are not needed any more would only hinder the end.
    sys.stdout.flush()
    os._exit(1 if missed else 0)


def write(options: argparse.Namespace, page: str) -> None:
    """Put the figures into a page, one section for each device."""
    head = "# Serving\n\nWritten by `make bench-serve`; what is measured, and how, says [serve.py](serve.py).\n"
    title = f"\n## {'A GPU' if options.device == 'cuda' else 'A CPU'}, {options.shape}\n\n"
    old = options.record.read_text() if options.record.exists() else head
    before, found, after = old.partition(title)
    rest = f"\n## {after.partition(chr(10) + '## ')[2]}" if found and "\n## " in after else ""
    options.record.write_text(before.rstrip("\n") + "\n" + title + page + rest)


if __name__ == "__main__":
    assert threading.current_thread() is threading.main_thread()
    sys.exit(main())
