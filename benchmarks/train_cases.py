"""One case of the training benchmark; prints its figures as a JSON line. Settings come as JSON."""

import json
import sys
import time
import warnings
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path[:0] = ["operator", "trainer"]
from herdsman.api.v1alpha1.recipes import PROJECTIONS, Lora
from herdsman_trainer.batches import Batch, Sequences, TrainingStream, collate_rows
from herdsman_trainer.distributed import Processes
from herdsman_trainer.engines import PlainEngine
from herdsman_trainer.fused.model import FusedModel
from herdsman_trainer.lora import TrainedModel, full_names, train_lora
from herdsman_trainer.models import set_matrix
from herdsman_trainer.objective import token_nll
from herdsman_trainer.sequence_order import GlobalBatch

PEAK = 989e12
SHAPES: dict[str, dict[str, int]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 32, "vocab_size": 49953},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "tiny": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "vocab_size": 499},
}  # fmt: skip
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}
RATE = 1e-4


class Random(Sequences):
    """Random tokens: blocks of one length, or samples as long as Alpaca's, a third of each the prompt."""

    def __init__(self, vocabulary: int, length: int, lengths: str | None, count: int) -> None:
        random = np.random.RandomState(1)
        if lengths == "alpaca":  # a mean of about 120 tokens, a long tail
            self._lengths = np.clip(random.lognormal(4.6, 0.6, count), 16, length).astype(np.int64)
        else:
            self._lengths = np.full(count, length, np.int64)
        self._sources = np.maximum(1, self._lengths // 3) if lengths == "alpaca" else np.ones(count, np.int64)
        self._ids = [random.randint(0, vocabulary, size) for size in self._lengths]

    def __len__(self) -> int:
        return len(self._ids)

    def collate(self, indices: Any) -> Batch:
        return collate_rows([(self._ids[i], int(self._sources[i])) for i in indices], 0)

    def targets(self, indices: Any) -> int:
        return int((self._lengths - self._sources)[np.asarray(indices).ravel()].sum())

    def lengths_of(self, indices: Any) -> Any:
        return self._lengths[indices]


def a_model(case: dict[str, Any], dtype: torch.dtype, dropout: float = 0.05) -> TrainedModel:
    """Return a model with random weights in `dtype` whose trained matrices are float32."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[case["shape"]], max_position_embeddings=4096, attn_implementation="sdpa")
    torch.set_default_dtype(dtype)
    with torch.device(case["device"]):
        base = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    base.config.use_cache = False
    base.requires_grad_(False)
    lora = Lora(
        rank=case["rank"], alpha=32, dropout=dropout, targets=PROJECTIONS, train_fully=["embed_tokens", "lm_head"]
    )
    names = full_names(lora, "LoRA", tied=False)
    for name in names:
        set_matrix(base, name, base.get_parameter(name).float())
    return train_lora(base, lora, names, {}, seed=1)


def stock_model(case: dict[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    """Return the same with peft's own wrapping of embedding and head, as people have it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[case["shape"]], max_position_embeddings=4096, attn_implementation="sdpa")
    torch.set_default_dtype(dtype)
    with torch.device(case["device"]):
        base = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    base.config.use_cache = False
    settings = LoraConfig(
        task_type="CAUSAL_LM", r=case["rank"], lora_alpha=32, lora_dropout=0.05, target_modules=PROJECTIONS,
        modules_to_save=["embed_tokens", "lm_head"],
    )  # fmt: skip
    model = get_peft_model(base, settings)
    for item in model.parameters():
        if item.requires_grad:
            item.data = item.data.float()
    return model


def flops(case: dict[str, Any], context: float) -> float:
    """Return the model's operations a token: 4 a frozen and 6 a trained weight, and causal attention over `context`."""
    shape = SHAPES[case["shape"]]
    d, f, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    kv = d // shape["num_attention_heads"] * shape["num_key_value_heads"]
    linear = layers * (2 * d * d + 2 * d * kv + 3 * d * f)
    lora = layers * case["rank"] * (2 * (d + d) + 2 * (d + kv) + 3 * (d + f))
    return 4 * linear + 6 * shape["vocab_size"] * d + 6 * lora + 6 * context * d * layers


def timed(step: Any, case: dict[str, Any], warm: int) -> list[float]:
    """Run `step` for the warm-up and `steps` times, and return the seconds of each."""
    seconds = []
    for number in range(warm + case["steps"]):
        _wait(case)
        began = time.perf_counter()
        step(number)
        _wait(case)
        if number >= warm:
            seconds.append(time.perf_counter() - began)
    return seconds


def _wait(case: dict[str, Any]) -> None:
    if case["device"] == "cuda":
        torch.cuda.synchronize()


def figures(case: dict[str, Any], data: Random, seconds: list[float], loss: float) -> dict[str, Any]:
    """Return the figures of the median step; all steps have the tokens of one pass over the data."""
    median = float(np.median(seconds))
    lengths = data.lengths_of(np.arange(len(data)))
    tokens = int(lengths.sum())
    context = float((lengths.astype(float) ** 2).sum() / lengths.sum())
    speed = tokens / median
    memory = torch.cuda.max_memory_allocated() / 1e9 if case["device"] == "cuda" else 0.0
    return {
        "tokens/s": round(speed, 1), "mfu": round(speed * flops(case, context) / PEAK, 4), "GB": round(memory, 2),
        "ms": round(1e3 * median, 2), "low": round(1e3 * min(seconds), 2), "high": round(1e3 * max(seconds), 2),
        "tokens": tokens, "loss": round(loss, 5),
    }  # fmt: skip


def ours(case: dict[str, Any]) -> dict[str, Any]:
    dtype = HALVES[case.get("half", "bf16")]
    model = a_model(case, dtype)
    processes = Processes(device=torch.device(case["device"]))
    objective = FusedModel(
        model, dtype=dtype, seed=1, recompute=case.get("recompute", "None"), base_format=case.get("format", "Native")
    )
    engine = PlainEngine(model, objective, processes, dtype=dtype, weight_decay=0.01, max_grad_norm=1.0)
    data = Random(SHAPES[case["shape"]]["vocab_size"], case["length"], case.get("lengths"), case["sequences"])
    stream = TrainingStream(data, GlobalBatch(len(data), 1), seed=1, micro_tokens=case.get("micro_tokens", 8192))
    losses = []
    if case["device"] == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def step(number: int) -> None:
        targets = stream.targets(number)
        total = sum(engine.accumulate(batch, targets) for batch in stream.micro_batches(number))
        engine.update(RATE)
        losses.append(float(total) / targets)

    seconds = timed(step, case, warm=5)
    if case.get("profile"):
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
            step(0)
            _wait(case)
        print(seen.key_averages().table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=70))
    return figures(case, data, seconds, losses[0])


def stock(case: dict[str, Any]) -> dict[str, Any]:
    """Run transformers with peft: as published, or tuned."""
    published = case["way"] == "published"
    dtype = HALVES[case.get("half", "fp16" if published else "bf16")]
    model = stock_model(case, dtype)
    if case.get("checkpointing", published):
        model.base_model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    if case["way"] == "compiled":
        for layer in model.base_model.model.model.layers:
            layer.compile()
    trained = [item for item in model.parameters() if item.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.01, fused=None if published else True)
    scaler = torch.amp.GradScaler(case["device"], enabled=dtype == torch.float16)
    data = Random(SHAPES[case["shape"]]["vocab_size"], case["length"], case.get("lengths"), case["sequences"])
    batches = _batches(case, data, published)
    targets = sum(batch.targets for batch in batches)
    losses = []
    if case["device"] == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def step(_: int) -> None:
        total = torch.zeros((), device=case["device"])
        for batch in batches:
            nll = token_nll(model, batch, torch.device(case["device"]), dtype).sum()
            scaler.scale(nll / targets).backward()
            total += nll.detach()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(total) / targets)

    return figures(case, data, timed(step, case, warm=case.get("warm", 2 if published else 4)), losses[0])


def _batches(case: dict[str, Any], data: Random, published: bool) -> list[Batch]:
    if published:
        return [data.collate([index]) for index in range(len(data))]
    if not case.get("packed"):
        return [data.collate(range(len(data)))]
    # samples behind each other in rows of the length, eight rows at a time, seeing each other as stock packing has it
    ids = np.concatenate(data._ids)
    rows = [(ids[start : start + case["length"]], 1) for start in range(0, len(ids), case["length"])]
    return [collate_rows(rows[start : start + 8], 0) for start in range(0, len(rows), 8)]


def accuracy(case: dict[str, Any]) -> dict[str, Any]:
    """Compare loss and gradients with float32's, without dropout; B is not zero."""
    device = torch.device(case["device"])
    data = Random(SHAPES[case["shape"]]["vocab_size"], case["length"], None, 2)
    batch = data.collate(range(2))
    values: dict[str, torch.Tensor] = {}

    def run(way: str) -> tuple[float, dict[str, torch.Tensor]]:
        dtype = torch.float32 if way == "exact" else torch.bfloat16
        model = a_model(case, torch.float32, dropout=0.0)
        torch.manual_seed(5)
        with torch.no_grad():
            for name, item in model.trained.items():
                if name.endswith("lora_B.weight"):
                    item.copy_(0.01 * torch.randn(item.shape, device=device))
            for item in model.base.parameters():
                if not item.requires_grad:
                    item.data = item.data.bfloat16().to(dtype)  # the same frozen weights for all
            for name in [name for name in model.trained if ".lora_" not in name]:
                model.trained[name].copy_(model.trained[name].bfloat16())
        if way == "ours":
            total = FusedModel(model, dtype=dtype, seed=1).accumulate(batch, 1 / batch.targets)
        else:
            total = token_nll(model.module, batch, device, dtype).sum()
            (total / batch.targets).backward()
        return float(total) / batch.targets, {name: item.grad.cpu() for name, item in model.trained.items()}

    loss, values = run("exact")
    norm = float(sum(value.double().pow(2).sum() for value in values.values())) ** 0.5
    result: dict[str, Any] = {}
    for way in ("stock", "ours"):
        if case["device"] == "cuda":
            torch.cuda.empty_cache()
        other, found = run(way)
        errors = {name: float((found[name] - value).norm() / value.norm()) for name, value in values.items()}
        worst = max(errors, key=errors.__getitem__)
        total = float(sum((found[name] - value).double().pow(2).sum() for name, value in values.items())) ** 0.5
        result[way] = {"loss": abs(other - loss), "worst": errors[worst], "where": worst, "all": total / norm}
    return result


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    asked = json.loads(sys.argv[1])
    ways = {"ours": ours, "published": stock, "stock": stock, "compiled": stock, "accuracy": accuracy}
    print(json.dumps(ways[asked["way"]](asked)))
