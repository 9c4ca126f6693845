"""Writes tiny models as Meta laid out its checkpoints, row by row, without anything of the importer."""

import copy
import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

BY_ROWS = {"q_proj": "attention.wq", "k_proj": "attention.wk", "v_proj": "attention.wv"}
BY_ROWS |= {"gate_proj": "feed_forward.w1", "up_proj": "feed_forward.w3"}
BY_COLUMNS = {"o_proj": "attention.wo", "down_proj": "feed_forward.w2"}
NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}


def random_llama(rows: int, *, heads: int = 8, kv_heads: int = 8, seed: int = 0, dtype=torch.float32, **settings):
    """A random Llama of two layers with heads of width 4."""
    config = {
        "vocab_size": rows,
        "hidden_size": 4 * heads,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-6,
        **settings,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**config))
        rotary = copy.deepcopy(model.model.rotary_emb)
        model.to(dtype).model.rotary_emb = rotary  # whose table a loaded model has in float32 too
        for name, parameter in model.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def write_meta(
    directory: Path,
    model: LlamaForCausalLM,
    *,
    shards: int = 1,
    embedding_by_rows: bool = False,
    tables: bool = True,
    **params,
) -> Path:
    """Write consolidated.*.pth and params.json; `params` overrides single figures, None drops one."""
    directory.mkdir(parents=True, exist_ok=True)
    parts = [{} for _ in range(shards)]
    for name, tensor in model.state_dict().items():
        for number, part in enumerate(split(name, meta_rows(name, tensor, model.config), shards, embedding_by_rows)):
            parts[number][meta_name(name)] = part.clone()
    for number, part in enumerate(parts):
        if tables:
            part["rope.freqs"] = torch.ones(2)
        torch.save(part, directory / f"consolidated.{number:02d}.pth")
    config = model.config
    figures = {
        "dim": config.hidden_size,
        "multiple_of": 256,
        "n_heads": config.num_attention_heads,
        "n_layers": config.num_hidden_layers,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": -1,
        "n_kv_heads": config.num_key_value_heads,
        **params,
    }
    written = {name: value for name, value in figures.items() if value is not None}
    (directory / "params.json").write_text(json.dumps(written))
    return directory


def meta_name(name: str) -> str:
    top = {"model.embed_tokens.weight": "tok_embeddings.weight", "model.norm.weight": "norm.weight"}
    top |= {"lm_head.weight": "output.weight"}
    if name in top:
        return top[name]
    _, _, layer, *_, block, _ = name.split(".")
    return f"layers.{layer}.{(BY_ROWS | BY_COLUMNS | NORMS)[block]}.weight"


def meta_rows(name: str, tensor: torch.Tensor, config: LlamaConfig) -> torch.Tensor:
    """Put side by side the rows that Meta's rotary embedding turns together."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return tensor
    width = config.hidden_size // config.num_attention_heads
    rows = []
    for head in range(0, len(tensor), width):
        for pair in range(width // 2):
            rows += [tensor[head + pair], tensor[head + pair + width // 2]]
    return torch.stack(rows)


def split(name: str, tensor: torch.Tensor, shards: int, embedding_by_rows: bool) -> list[torch.Tensor]:
    """As Meta does; rows of the head that are left over go to the last file."""
    block = name.split(".")[-2]
    if tensor.dim() == 1:
        return [tensor] * shards
    if block in BY_COLUMNS or (block == "embed_tokens" and not embedding_by_rows):
        return list(tensor.chunk(shards, dim=1))
    each = len(tensor) // shards
    return [tensor[number * each : (number + 1) * each if number + 1 < shards else None] for number in range(shards)]


def meta_logits(
    parts: dict[str, torch.Tensor], ids: torch.Tensor, *, heads: int, kv_heads: int, theta: float, eps: float
):
    """What Meta's own model computes from the unsharded weights: rotation of neighbouring values as complex numbers."""

    def norm(x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

    x = parts["tok_embeddings.weight"][ids]
    length, dim = x.shape
    width = dim // heads
    frequencies = 1.0 / theta ** (torch.arange(0, width, 2).float() / width)
    turn = torch.polar(torch.ones(length, width // 2), torch.outer(torch.arange(length).float(), frequencies))
    mask = torch.full((length, length), float("-inf")).triu(1)

    def turned(x):
        return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turn[:, None]).flatten(2)

    for layer in range(1 + max(int(name.split(".")[1]) for name in parts if name.startswith("layers."))):
        w = {name.removeprefix(f"layers.{layer}."): value for name, value in parts.items()}
        h = norm(x, w["attention_norm.weight"])
        q = turned((h @ w["attention.wq.weight"].T).view(length, heads, width))
        k = turned((h @ w["attention.wk.weight"].T).view(length, kv_heads, width)).repeat_interleave(
            heads // kv_heads, 1
        )
        v = (h @ w["attention.wv.weight"].T).view(length, kv_heads, width).repeat_interleave(heads // kv_heads, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / width**0.5 + mask
        x = x + torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(length, dim) @ w["attention.wo.weight"].T
        h = norm(x, w["ffn_norm.weight"])
        gate = torch.nn.functional.silu(h @ w["feed_forward.w1.weight"].T)
        x = x + (gate * (h @ w["feed_forward.w3.weight"].T)) @ w["feed_forward.w2.weight"].T
    return norm(x, parts["norm.weight"]) @ parts["output.weight"].T
