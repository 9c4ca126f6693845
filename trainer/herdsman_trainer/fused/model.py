"""A Llama whose passes are written out: the loss of a batch and its gradients, over the matrices of a TrainedModel."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from transformers import LlamaForCausalLM

from herdsman.api.v1alpha1.recipes import BaseFormat, Recompute
from herdsman_trainer.batches import Batch
from herdsman_trainer.fused import plain_ops
from herdsman_trainer.fused.block import DOWN, GATE_UP, OUT, QKV, Block, Pass
from herdsman_trainer.fused.dropout import PlacedDropout, Places, site_hash, threshold_of
from herdsman_trainer.fused.frozen import FORMATS, Frozen
from herdsman_trainer.fused.gradients import Gradient
from herdsman_trainer.fused.head import Head, aligned_rows
from herdsman_trainer.fused.lora import Group, LoraGroup, LoraStore, Part
from herdsman_trainer.fused.packing import Packed, pack, plain_batch
from herdsman_trainer.fused.recording import Recorder
from herdsman_trainer.lora import TrainedModel

SITES: dict[int, tuple[str, ...]] = {
    QKV: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    OUT: ("self_attn.o_proj",),
    GATE_UP: ("mlp.gate_proj", "mlp.up_proj"),
    DOWN: ("mlp.down_proj",),
}


def why_not(model: TrainedModel) -> str | None:
    """Return why a model cannot be computed this way, or None where it can."""
    config = model.base.config
    allowed = (".lora_A.weight", ".lora_B.weight", "model.embed_tokens.weight", "lm_head.weight")
    if odd := [name for name in model.trained if not name.endswith(allowed)]:
        return f"{odd[0]} is trained"
    if config.attention_bias or config.mlp_bias:
        return "its projections have biases"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    return None


def place_dropout(model: TrainedModel, seed: int) -> Places:
    """Let peft's modules drop what the passes written out would drop, and return what has to be told the places."""
    places = Places(seed)
    for layer in _layers(model.base):
        for site, names in SITES.items():
            for name in names:
                module: Any = model.base.get_submodule(f"model.layers.{layer}.{name}")
                if hasattr(module, "lora_dropout"):
                    module.lora_dropout["default"] = PlacedDropout(places, site_hash(layer, site), model.dropout)
    return places


class FusedModel:
    """Computes with the matrices of `model`, which stays usable: its frozen weights become parts of larger ones."""

    def __init__(
        self,
        model: TrainedModel,
        *,
        dtype: torch.dtype,
        seed: int,
        recompute: Recompute = "None",
        base_format: BaseFormat = "Native",
        rearrange: bool = True,
    ) -> None:
        """`rearrange` lets trained parameters lie in memory as they are copied fastest."""
        base = model.base
        self._base = base
        self._dtype = dtype
        self._seed = seed
        self.recompute: Recompute = recompute
        self._threshold = threshold_of(model.dropout if model.lora_targets else 0.0)
        self._embedding = base.model.embed_tokens.weight
        device = self._embedding.device
        ops = operations(base, device, model.settings.rank)
        self._rotary = base.model.rotary_emb
        groups = [_group(base, layer, site, model.lora_targets) for layer in _layers(base) for site in SITES]
        settings = model.settings
        self._store = LoraStore(
            [group for group in groups if group.parts],
            model.trained,
            rank=settings.rank,
            scale=settings.scale,
            dtype=dtype,
            device=device,
            rearrange=rearrange,
        )
        made = iter(self._store.groups)
        lora = [next(made) if group.parts else None for group in groups]
        self._blocks = [
            _block(base, layer, lora[layer * len(SITES) : (layer + 1) * len(SITES)], dtype, base_format, ops)
            for layer in _layers(base)
        ]
        head = base.lm_head.weight
        self._head_gradient = Gradient(head, aligned_rows(head)) if head.requires_grad else None
        self._embedding_gradient = Gradient(self._embedding) if self._embedding.requires_grad else None
        if self._embedding is head:
            self._embedding_gradient = self._head_gradient
        norm, epsilon = base.model.norm.weight.detach().to(dtype), base.config.rms_norm_eps
        self._head = Head(head, self._head_gradient, norm, epsilon, dtype, ops)
        self._recorder = Recorder(self._pass) if device.type == "cuda" else None
        self._store.refresh()

    def refresh(self) -> None:
        """Take over the trained parameters' values; to be called whenever they have changed."""
        self._store.refresh()
        if self._head_gradient is not None:
            self._head.refresh()

    @torch.no_grad()
    def accumulate(self, batch: Batch, scale: float) -> torch.Tensor:
        """Add the gradients of `scale` times the summed loss; returns the sum, without waiting for the device."""
        device = self._embedding.device
        packed = pack(batch, device, self._seed)
        missing = [each.attach() for each in (self._head_gradient, self._embedding_gradient) if each is not None]
        first = self._store.attach_gradients() or any(missing)
        run = self._recorder if self._recorder is not None and self.recompute == "None" else self._pass
        return run(packed, torch.tensor(scale, device=device), first)

    @torch.no_grad()
    def token_nll(self, batch: Batch) -> torch.Tensor:
        """Return the loss of every target without dropout, (rows, width − 1), float32; zero elsewhere."""
        packed = pack(batch, self._embedding.device)
        losses = self._head.losses(self._states(packed), packed)
        result = torch.zeros(packed.rows * (packed.width - 1), device=losses.device)
        return result.index_copy_(0, packed.cells, losses).view(packed.rows, -1)

    @torch.no_grad()
    def logits(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the logits of every position without dropout, (rows, length, vocabulary); zeros at padding."""
        packed = pack(plain_batch(input_ids, attention_mask), self._embedding.device)
        found = self._head.logits(self._states(packed))
        result = torch.zeros(*input_ids.shape, found.shape[1], dtype=found.dtype, device=found.device)
        result[attention_mask.bool().to(found.device)] = found
        return result

    def _states(self, packed: Packed) -> torch.Tensor:
        """Return the states before the last norm, without dropout and without keeping anything."""
        run = self._pass_of(packed, 0)
        h = self._embed(packed)
        for block in self._blocks:
            h = block.forward(h, run, None)[0]
        return h

    def _pass(self, packed: Packed, scale: torch.Tensor, first: bool) -> torch.Tensor:
        """Run forward and backward; `first`: gradients have no value yet."""
        if first:
            self._store.clear_gradients()
        run = self._pass_of(packed, self._threshold)
        h = self._embed(packed)
        kept = []
        for block in self._blocks:
            h, one = block.forward(h, run, self.recompute)
            kept.append(one)
        losses, dh = self._head.losses_and_gradient(h, packed, scale, first=first)
        del h
        for block in reversed(self._blocks):
            dh = block.backward(dh, kept.pop(), run)
        if self._embedding_gradient is not None:
            if first and self._embedding_gradient is not self._head_gradient:
                self._embedding_gradient.whole.zero_()
            self._embedding_gradient.whole.index_add_(0, packed.ids, dh.float())
        total: torch.Tensor = losses.sum()
        return total

    def _pass_of(self, packed: Packed, threshold: int) -> Pass:
        like = torch.empty(0, dtype=torch.float32, device=packed.ids.device)
        cos, sin = self._rotary(like, packed.positions[None])
        return Pass(packed, cos[0].contiguous(), sin[0].contiguous(), threshold)

    def _embed(self, packed: Packed) -> torch.Tensor:
        found: torch.Tensor = self._embedding.detach()[packed.ids]
        return found.to(self._dtype)


def operations(base: LlamaForCausalLM, device: torch.device, rank: int) -> ModuleType:
    """Return the operations for a device: kernels on a GPU, where the shapes fit them."""
    if device.type != "cuda":
        return plain_ops
    from herdsman_trainer.fused import triton_ops

    size = base.config.head_dim
    edges = [_linear(base, 0, name).weight.shape[0] for names in SITES.values() for name in names]
    return triton_ops if triton_ops.fits(tuple(edges), size, rank) else plain_ops


def _layers(base: LlamaForCausalLM) -> range:
    return range(base.config.num_hidden_layers)


def _linear(base: LlamaForCausalLM, layer: int, name: str) -> Any:
    """Return a projection, the one inside where peft has wrapped it."""
    module: Any = base.get_submodule(f"model.layers.{layer}.{name}")
    return getattr(module, "base_layer", module)


def _group(base: LlamaForCausalLM, layer: int, site: int, targets: Sequence[str]) -> Group:
    parts: list[Part] = []
    column = 0
    for short in SITES[site]:
        name = f"model.layers.{layer}.{short}"
        outputs = _linear(base, layer, short).weight.shape[0]
        if f"{name}.weight" in targets:
            parts.append(Part(name, column, column + outputs, len(parts)))
        column += outputs
    return Group(_linear(base, layer, SITES[site][0]).weight.shape[1], tuple(parts))


def _block(
    base: LlamaForCausalLM,
    layer: int,
    lora: Sequence[LoraGroup | None],
    dtype: torch.dtype,
    base_format: BaseFormat,
    ops: ModuleType,
) -> Block:
    config = base.config
    module = base.model.layers[layer]
    device = base.model.embed_tokens.weight.device
    linears = [[_linear(base, layer, name) for name in names] for names in SITES.values()]
    weights = tuple(_frozen(each, base_format, device) for each in linears)
    return Block(
        layer=layer,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        epsilon=config.rms_norm_eps,
        norm=module.input_layernorm.weight.detach().to(dtype),
        after_norm=module.post_attention_layernorm.weight.detach().to(dtype),
        weights=weights,  # type: ignore[arg-type]
        lora=tuple(lora),
        ops=ops,
    )


def _frozen(linears: Sequence[Any], base_format: BaseFormat, device: torch.device) -> Frozen:
    """Return the matrices under each other as one.

    The modules' own weights become views of it; in a format of fewer bits they are left without values, for the whole
    would be there twice.
    """
    parts = [linear.weight.detach() for linear in linears]
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    start = 0
    for linear in linears:
        stop = start + linear.weight.shape[0]
        if base_format == "Native":
            linear.weight.data = whole[start:stop]
        else:
            linear.weight = torch.nn.Parameter(torch.empty_like(linear.weight, device="meta"), requires_grad=False)
        start = stop
    return FORMATS[base_format](whole.to(device))
