"""Merges adapters into a model: planned from names and shapes alone, then computed a block of rows at a time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import torch

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.adapters import Adapter, LoraPair
from herdsman_trainer.weights.reading import TensorFiles
from herdsman_trainer.weights.reading_ahead import Place
from herdsman_trainer.weights.tensor_spec import TensorSpec, shape_text

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
BLOCK_VALUES = 1 << 22
"""Values of one block: 16 MiB in float32, whatever the size of the model."""
PASS_VALUES = 1 << 19
"""Values of a block of a merge: several are under way at once, and 2 MiB stay in a core's cache."""


@dataclass(frozen=True)
class Replacement:
    """The tensor becomes the adapter's fully trained matrix."""

    adapter: int
    key: str


@dataclass(frozen=True)
class LowRankUpdate:
    """The tensor gains scale · B·A, or its transpose where the layer stores in x out."""

    adapter: int
    pair: LoraPair
    scale: float
    transposed: bool


Change = Replacement | LowRankUpdate


@dataclass(frozen=True)
class MergedTensor:
    """A tensor of the result: the base's tensor it starts from, and what the adapters do to it, in order."""

    spec: TensorSpec
    start: str
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class MergePlan:
    """Every tensor of the result, in the order of the base's files."""

    tensors: Mapping[str, MergedTensor]
    tied: bool
    """Whether the head is the embedding's matrix, so that no head is stored."""

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self.tensors[EMBEDDING].spec.shape[0]

    @property
    def specs(self) -> list[TensorSpec]:
        """Names, types and shapes of the result."""
        return [tensor.spec for tensor in self.tensors.values()]

    def in_order(self, names: Iterable[str]) -> "MergePlan":
        """Return the same plan with its tensors in another order."""
        return replace(self, tensors={name: self.tensors[name] for name in names})


def plan_merge(
    base: Mapping[str, TensorSpec], adapters: Sequence[Adapter], *, tied: bool, dtype: torch.dtype | None = None
) -> MergePlan:
    """Decide what becomes of every tensor; reads no values.

    `base` is complete (vocabulary.check_base); `tied` is its `tie_word_embeddings`. The result has the base's types
    unless `dtype` is given. Raises BadInput for a target the base lacks, for shapes that do not fit, and for a
    vocabulary that shrinks or differs between embedding and head.
    """
    tensors = {
        name: MergedTensor(replace(spec, dtype=_result_type(spec, dtype)), start=name)
        for name, spec in base.items()
        if not name.endswith("rotary_emb.inv_freq") and not (tied and name == HEAD)
    }
    for number, adapter in enumerate(adapters):
        where = str(adapter.directory)
        for name, spec in adapter.full.items():
            current = _current(tensors, name, where, tied=tied)
            _check_replacement(name, current.spec.shape, spec.shape, where)
            grown = replace(current.spec, name=name, shape=spec.shape)
            tensors[name] = MergedTensor(grown, current.start, (Replacement(number, spec.name),))
        turned = _stored_transposed(adapter, tensors)
        for name, pair in adapter.lora.items():
            if tied and name == HEAD and HEAD not in tensors:
                hint = "Train the embedding fully instead of giving the head a LoRA."
                raise BadInput(
                    "The adapter has a LoRA on lm_head, which the base ties to the embedding.", file=where, hint=hint
                )
            current = _current(tensors, name, where, tied=tied)
            update = LowRankUpdate(number, pair, pair.scale, turned)
            _check_update(name, current.spec.shape, update, where)
            tensors[name] = replace(current, changes=(*current.changes, update))
        _check_vocabulary(tensors, where)
    return MergePlan(tensors, tied=HEAD not in tensors)


def _result_type(spec: TensorSpec, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and spec.dtype.is_floating_point else spec.dtype


def _current(tensors: Mapping[str, MergedTensor], name: str, where: str, *, tied: bool) -> MergedTensor:
    if tied and name == HEAD and HEAD not in tensors:
        return tensors[EMBEDDING]
    if name not in tensors:
        hint = "It was trained on another model; merge it with the one its README or artifact names."
        raise BadInput(f"The adapter changes {name}, which the base does not have.", file=where, hint=hint)
    return tensors[name]


def _stored_transposed(adapter: Adapter, tensors: Mapping[str, MergedTensor]) -> bool:
    """Whether the adapter's layers are stored in x out: it says so, and its shapes do not fit as they are.

    peft takes no notice of fan_in_fan_out where a layer is linear, as all of a Llama's are.
    """
    known = ((pair, tensors[name].spec.shape) for name, pair in adapter.lora.items() if name in tensors)
    fits = all((pair.b.shape[0], pair.a.shape[1]) == shape for pair, shape in known)
    return adapter.settings.fan_in_fan_out and not fits


def _check_replacement(name: str, old: tuple[int, ...], new: tuple[int, ...], where: str) -> None:
    vocabulary = name in (EMBEDDING, HEAD)
    if vocabulary and old[1:] == new[1:] and new[0] < old[0]:
        message = f"The adapter's {name} has {new[0]} rows and the model before it already has {old[0]}."
        hint = "A vocabulary cannot shrink: check the order of the adapters, and which base they belong to."
        raise BadInput(message, file=where, hint=hint)
    if old != new and not (vocabulary and old[1:] == new[1:]):
        message = f"The adapter's {name} is {shape_text(new)} and the base's is {shape_text(old)}."
        raise BadInput(message, file=where, hint="The adapter was trained on a model of another size.")


def _check_update(name: str, shape: tuple[int, ...], update: LowRankUpdate, where: str) -> None:
    product = (update.pair.b.shape[0], update.pair.a.shape[1])
    if update.transposed:
        product = (product[1], product[0])
    if product != shape:
        message = f"The LoRA of {name} is {shape_text(product)} and the base's matrix is {shape_text(shape)}."
        raise BadInput(message, file=where, hint="The adapter was trained on a model of another size.")


def _check_vocabulary(tensors: Mapping[str, MergedTensor], where: str) -> None:
    rows = tensors[EMBEDDING].spec.shape[0]
    if HEAD in tensors and (head := tensors[HEAD].spec.shape[0]) != rows:
        message = f"After the adapter {EMBEDDING} has {rows} rows and {HEAD} has {head}."
        hint = "Train both with trainFully: [embed_tokens, lm_head] where the vocabulary grows."
        raise BadInput(message, file=where, hint=hint)


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a merged tensor."""

    values: torch.Tensor
    """float32 sums where an adapter changes the tensor by a product, else values as they are stored."""
    before: torch.Tensor | None
    """The base's rows in their place; None where no adapter changes the tensor, or where it changes its shape."""


@dataclass(frozen=True)
class Merge:
    """A plan with the files its values come from."""

    plan: MergePlan
    base: TensorFiles
    adapters: Sequence[Adapter]

    def place(self, name: str) -> Place | None:
        """Return where most of what `rows` reads for this tensor lies, None where that is not known."""
        tensor = self.plan.tensors[name]
        first = tensor.changes[0] if tensor.changes else None
        if isinstance(first, Replacement):
            return self.adapters[first.adapter].place(first.key)
        return self.base.place(tensor.start)

    def rows(self, name: str, multiple: int = 1) -> Iterator[Rows]:
        """Yield the merged values of a tensor as blocks of rows; each but the last has a multiple of `multiple` rows.

        All sums are made in float32: W + scale · B·A (Hu et al. 2021, section 4.1). Blocks are about equally long: a
        product of one to three rows is summed in another order than others are.
        """
        tensor = self.plan.tensors[name]
        first = tensor.changes[0] if tensor.changes else None
        before = self.base.tensor(tensor.start)
        source = self.adapters[first.adapter].read(first.key) if isinstance(first, Replacement) else before
        comparable = bool(tensor.changes) and before.dim() and before.shape == source.shape
        updates = [self._factors(change) for change in tensor.changes if isinstance(change, LowRankUpdate)]
        rows = source.shape[0] if source.dim() else 1
        for start, end in _equal_parts(rows, PASS_VALUES * max(rows, 1) // max(prod(source.shape), 1), multiple):
            block = source[start:end] if source.dim() else source
            if updates:
                block = block.to(torch.float32, copy=True)
            for left, right, scale in updates:
                block.addmm_(left[start:end], right, alpha=scale)
            yield Rows(block, before[start:end] if comparable else None)

    def blocks(self, spec: TensorSpec) -> Iterator[torch.Tensor]:
        """Yield the merged values of a tensor as blocks of rows in the type of the plan: rounded once, at the end."""
        for rows in self.rows(spec.name):
            yield rows.values.to(spec.dtype)

    def start_of(self, name: str) -> TensorSpec:
        """Return the base's tensor that a tensor of the result starts from."""
        return self.base.specs[self.plan.tensors[name].start]

    def tensor(self, name: str) -> torch.Tensor:
        """Return one merged tensor whole, in memory of its own."""
        blocks = list(self.blocks(self.plan.tensors[name].spec))
        return torch.cat(blocks) if len(blocks) > 1 else blocks[0].clone()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the whole merged model in memory, for serving without writing it."""
        return {name: self.tensor(name) for name in self.plan.tensors}

    def _factors(self, update: LowRankUpdate) -> tuple[torch.Tensor, torch.Tensor, float]:
        read = self.adapters[update.adapter].read
        a, b = read(update.pair.a.name).to(torch.float32), read(update.pair.b.name).to(torch.float32)
        return (a.T, b.T, update.scale) if update.transposed else (b, a, update.scale)


def _equal_parts(rows: int, most: int, multiple: int) -> Iterator[tuple[int, int]]:
    """Cut rows into parts of about the same size, `most` or less; all but the last have a multiple of `multiple`."""
    units = -(-rows // multiple)
    parts = -(-units // max(1, most // multiple)) or 1
    edges = (min(rows, units * part // parts * multiple) for part in range(parts + 1))
    return pairwise(edges)


def merge(base: TensorFiles, adapters: Sequence[Adapter], *, tied: bool, dtype: torch.dtype | None = None) -> Merge:
    """Plan the merge and connect it with its files; raises BadInput as plan_merge does.

    A tied base stays tied unless an adapter holds a head that differs from its embedding.
    """
    if tied:
        adapters = [without_tied_copy(adapter) for adapter in adapters]
    return Merge(plan_merge(base.specs, adapters, tied=tied, dtype=dtype), base, adapters)


def without_tied_copy(adapter: Adapter) -> Adapter:
    """Drop a head that only repeats the embedding: peft stores both where one matrix is trained under two names."""
    embedding, head = adapter.full.get(EMBEDDING), adapter.full.get(HEAD)
    if embedding is None or head is None or not torch.equal(adapter.read(embedding.name), adapter.read(head.name)):
        return adapter
    return replace(adapter, full={name: spec for name, spec in adapter.full.items() if name != HEAD})
