"""The forward pass of a Llama over a batch of tokens without padding.

The layers are those of transformers' LlamaForCausalLM, with its weights and its rotary embedding; what differs is where
keys and values go and how attention finds them. Products that read the same input are one, and a pass launches a third
of the kernels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from herdsman_server.batching.attention import Attention
from herdsman_server.batching.linear import AnyLinear, Linear, fused, linear_of
from herdsman_server.batching.lora import LoraStack

CHANGING_ROPE = ("dynamic", "longrope")
"""Kinds of rotary embedding that depend on how long a sequence has become."""


@dataclass
class _Layer:
    before_attention: torch.Tensor
    attention: AnyLinear
    """Queries, keys and values."""
    out: AnyLinear
    before_feed_forward: torch.Tensor
    gate_and_up: AnyLinear
    down: AnyLinear


@dataclass(frozen=True)
class Batch:
    """The tokens of one pass, and where their keys and values go."""

    ids: torch.Tensor
    positions: torch.Tensor
    """Places in their sequences, int64."""
    places: torch.Tensor
    """Places in the memory of keys and values, int64."""
    attention: Attention
    adapters: torch.Tensor | None = None
    """The number of each token's adapter, int64; None where nobody has one."""


def why_not(model: Any) -> str | None:
    """Return why this forward pass cannot stand for a model's own, or None."""
    if type(model).__name__ != "LlamaForCausalLM":
        return f"it is a {type(model).__name__}"
    rope = (getattr(model.config, "rope_parameters", None) or getattr(model.config, "rope_scaling", None)) or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, Mapping) else "default"
    if kind in CHANGING_ROPE:
        return f"its rotary embedding ({kind}) depends on the length"
    return None


class BatchedLlama:
    """A Llama whose passes are batches of tokens of several sequences."""

    def __init__(self, model: Any, *, context_length: int, quantisation: str | None = None) -> None:
        """Take a LlamaForCausalLM apart: its modules lose their weights, so that nothing is held twice."""
        config = model.config
        self.heads: int = config.num_attention_heads
        self.groups: int = config.num_key_value_heads or self.heads
        self.width: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.vocabulary: int = config.vocab_size
        self.lora: LoraStack | None = None
        """Adapters that tokens may choose."""
        inner = model.model
        self.embedding: torch.Tensor = inner.embed_tokens.weight.detach()
        self.dtype = self.embedding.dtype
        self.device = self.embedding.device
        self._epsilon: float = config.rms_norm_eps
        self._activate = inner.layers[0].mlp.act_fn
        positions = torch.arange(context_length, device=self.device)[None]
        cosine, sine = inner.rotary_emb(self.embedding[:1], positions)
        half = self.width // 2
        self._cosine, self._sine = cosine[0, :, :half].contiguous(), sine[0, :, :half].contiguous()
        tied = model.lm_head.weight is inner.embed_tokens.weight
        self.linear_shapes: dict[str, tuple[int, int]] = {
            f"{name}.weight": (module.out_features, module.in_features)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        """[out, in] of each linear layer, by the name of its weight."""
        self.layers = [_layer(each, quantisation) for each in inner.layers]
        self._norm: torch.Tensor = inner.norm.weight.detach()
        # The head keeps its precision: its errors would go straight into the choice of the token.
        self._head = Linear(self.embedding, None) if tied else linear_of(model.lm_head, None)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the linear layers' weights, the head's and the embedding's."""
        linear = [each for layer in self.layers for each in (layer.attention, layer.out, layer.gate_and_up, layer.down)]
        own = 0 if self._head.weight is self.embedding else self._head.nbytes
        return sum(each.nbytes for each in linear) + own + self.embedding.nbytes

    def states(self, batch: Batch, memory: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """Return the last layer's states, [tokens, width of the model], and write keys and values to the memory."""
        lora = self.lora.for_tokens(batch.adapters) if self.lora is not None and batch.adapters is not None else None
        cosine, sine = self._cosine[batch.positions][:, None], self._sine[batch.positions][:, None]
        x = functional.embedding(batch.ids, self.embedding)
        if lora is not None:
            x = lora.embed(batch.ids, x)
        rotated = self.heads + self.groups
        half = self.width // 2
        for number, (layer, (keys, values)) in enumerate(zip(self.layers, memory, strict=True)):
            h = functional.rms_norm(x, (x.shape[-1],), layer.before_attention, self._epsilon)
            qkv = layer.attention(h)
            if lora is not None:
                lora.add(qkv, h, number, "q_proj", "k_proj", "v_proj")
            qkv = qkv.view(-1, rotated + self.groups, self.width)
            one, other = qkv[:, :rotated, :half], qkv[:, :rotated, half:]
            turned = torch.cat((one * cosine - other * sine, other * cosine + one * sine), dim=-1)
            keys.index_copy_(0, batch.places, turned[:, self.heads :])
            values.index_copy_(0, batch.places, qkv[:, rotated:])
            found = batch.attention(turned[:, : self.heads], keys, values)
            found = found.reshape(-1, self.heads * self.width)
            mixed = layer.out(found)
            if lora is not None:
                lora.add(mixed, found, number, "o_proj")
            x = x + mixed
            h = functional.rms_norm(x, (x.shape[-1],), layer.before_feed_forward, self._epsilon)
            both = layer.gate_and_up(h)
            if lora is not None:
                lora.add(both, h, number, "gate_proj", "up_proj")
            gate, up = both.chunk(2, dim=-1)
            inside = self._activate(gate) * up
            down = layer.down(inside)
            if lora is not None:
                lora.add(down, inside, number, "down_proj")
            x = x + down
        return functional.rms_norm(x, (x.shape[-1],), self._norm, self._epsilon)

    def logits(self, states: torch.Tensor, adapters: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits of states, in float32."""
        found = self._head(states)
        if self.lora is not None and adapters is not None:
            found = self.lora.for_tokens(adapters).head(states, found)
        return found.float()


def _layer(layer: Any, quantisation: str | None) -> _Layer:
    attention, feed_forward = layer.self_attn, layer.mlp
    return _Layer(
        before_attention=layer.input_layernorm.weight.detach(),
        attention=fused([attention.q_proj, attention.k_proj, attention.v_proj], quantisation),
        out=linear_of(attention.o_proj, quantisation),
        before_feed_forward=layer.post_attention_layernorm.weight.detach(),
        gate_and_up=fused([feed_forward.gate_proj, feed_forward.up_proj], quantisation),
        down=linear_of(feed_forward.down_proj, quantisation),
    )
