"""Builders of tiny models and adapters, made by transformers and peft themselves: the reference for our merge."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

ROWS = 40
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(directory: Path, *, rows: int = ROWS, tied: bool = False, dtype=torch.float32, seed: int = 0) -> Path:
    """Write a random Llama of two layers, without a tokenizer."""
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).to(dtype).save_pretrained(directory)
    return directory


def adapter(
    directory: Path,
    model: Path,
    *,
    rows: int | None = None,
    targets=PROJECTIONS,
    full=("embed_tokens", "lm_head"),
    tied: bool = False,
    seed: int = 1,
    **lora,
) -> Path:
    """Write a random peft adapter for a model, whose embeddings have `rows` rows; returns the directory."""
    wrapped = peft_model(model, rows=rows, targets=targets, full=full, tied=tied, seed=seed, **lora)
    wrapped.save_pretrained(directory, save_embedding_layers=False)
    return directory


def two_adapters(root: Path, model: Path) -> dict[str, Path]:
    """Write two adapters without whole matrices, of different ranks, scales and layers; returns them by name."""
    return {
        "law": adapter(root / "law", model, full=(), r=2, seed=1),
        "med": adapter(root / "med", model, full=(), r=5, lora_alpha=9, targets=["q_proj", "down_proj"], seed=2),
    }


def peft_model(model: Path, *, rows, targets, full, tied, seed, **lora) -> PeftModel:
    base = load(model)
    if rows:
        base.resize_token_embeddings(rows, mean_resizing=False)
    settings = {"r": 2, "lora_alpha": 6, "lora_dropout": 0.0, **lora}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=list(targets),
        modules_to_save=list(full) or None,
        ensure_weight_tying=tied,
        **settings,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(base, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return wrapped


def load(directory: Path, dtype=None) -> LlamaForCausalLM:
    """Load a model and refuse missing and unexpected keys."""
    model, info = LlamaForCausalLM.from_pretrained(directory, dtype=dtype or "auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model


def make_talkative(directory: Path) -> None:
    """Give a model larger weights than at initialisation, so that its answers are not all the same."""
    model = load(directory)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape) * 0.4)
    model.save_pretrained(directory)


def most_probable(model: Path, adapter: Path | None, prompt: Sequence[int], steps: int) -> list[int]:
    """Return what the most probable tokens are by peft's own forward pass, without any cache."""
    module = load(model)
    if adapter is not None:
        module = PeftModel.from_pretrained(module, adapter)
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(module(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def merged_by_peft(model: Path, adapters: list[Path], rows: int | None = None) -> dict[str, torch.Tensor]:
    """Merge adapters one after the other as peft does; returns the state dict."""
    merged = load(model)
    if rows:
        merged.resize_token_embeddings(rows, mean_resizing=False)
    for directory in adapters:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = PeftModel.from_pretrained(merged, directory).merge_and_unload()
    return merged.state_dict()
