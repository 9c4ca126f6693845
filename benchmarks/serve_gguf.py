"""Our engine llamacpp beside the binding's own server, on the same GGUF file of random weights."""

import argparse
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import serve_parts as parts
import torch

from herdsman.api.job_config import Input, LoRAMergeConfig, Owner, WorkspaceDir
from herdsman_server.engine import Sampling
from herdsman_trainer.__main__ import run_step
from herdsman_trainer.run_context import RunContext

PIECES = 4000
TYPE = "Q8_0"
MOST = 16
"""Answers that llama.cpp computes at once here."""


def beside_its_own_server(root: Path, options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of both, by their names; nothing where llama.cpp is not installed."""
    try:
        import xllamacpp  # noqa: F401
    except ImportError:
        return {}
    from herdsman_server.llama_cpp_engine import LlamaCppEngine

    path = _gguf(root, options.shape)
    say(f"the GGUF file is made ({path.stat().st_size / 2**20:.0f} MiB)")
    context = min(4096, parts.SHAPES[options.shape]["max_position_embeddings"])
    sampling = Sampling(max_tokens=options.tokens)
    asked = parts.prompts(PIECES, *options.prompts)
    client, found = parts.Client(), dict[str, Any]()
    counts = [clients for clients in options.clients if clients <= MOST]
    engine = LlamaCppEngine(path, context_length=context, device=options.device, parallel=MOST)
    with parts.gateway(engine, parts.Words(PIECES)) as port:
        bodies = [parts.body(prompt, sampling) for prompt in asked]
        common = {"port": port, "path": "/v1/completions", "chunk": "openai", "bodies": bodies}
        for clients in counts:
            run = client(kind="closed", clients=clients, seconds=options.seconds, **common)
            found[f"llamacpp, gateway, c = {clients}"] = parts.figures(run, options.seconds)
            say(
                f"llamacpp, c = {clients}: {found[f'llamacpp, gateway, c = {clients}']['tokens a second']:.1f} tokens/s"
            )
    own = _own_server(path, context, options.device)
    bodies = [parts.llama_cpp_body(prompt, sampling) for prompt in asked]
    common = {"path": "/completion", "chunk": "llama.cpp", "bodies": bodies, **own}
    for clients in counts:
        run = client(kind="closed", clients=clients, seconds=options.seconds, **common)
        found[f"llama.cpp's own server, c = {clients}"] = parts.figures(run, options.seconds)
    client.close()
    return found


def _own_server(path: Path, context: int, device: str) -> dict[str, Any]:
    """Start the binding's server with the same settings as our engine's."""
    from herdsman_server import llama_cpp_engine

    key = secrets.token_hex(16)
    settings = llama_cpp_engine._settings(path, context, key, device, MOST, exact=False)
    server = llama_cpp_engine._start(settings, path)
    return {"port": int(server.listening_address.rpartition(":")[2]), "key": key}


def _gguf(root: Path, shape: str) -> Path:
    """Write random weights with a tokenizer of the repository's own texts, and merge them into a GGUF file."""
    model = root / "model"
    model.mkdir()
    texts = sorted(parts.HERE.parent.glob("docs/**/*.md"))
    sentencepiece.SentencePieceTrainer.train(
        input=",".join(map(str, texts)),
        model_prefix=str(model / "tokenizer"),
        vocab_size=PIECES,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model / "tokenizer.model")).get_piece_size()
    parts.SHAPES["gguf"] = {**parts.SHAPES[shape], "vocab_size": pieces}
    made = parts.random_model("gguf", "cpu")
    made.to(torch.float16).save_pretrained(model)
    config = LoRAMergeConfig(
        owner=Owner(kind="LoRAMerge", name="bench", uid="bench"),
        attempt=1,
        workspace=WorkspaceDir(root=str(root), path=str(root / "work"), claim="bench", relative="work"),
        model=Input(root=str(root), path=str(model), field="spec.model"),
        adapters=[],
        outputs={"gguf": [{"type": TYPE}]},
        template="alpaca",
    )
    run_step(config, RunContext(config, rank=0))
    return next((root / "work/artifact/gguf").glob("*.gguf"))
