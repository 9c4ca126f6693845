"""From an adapter's directory to matrices beside the model that is served, checked as for a merge."""

from pathlib import Path

import torch

from herdsman_server.batching.batching_engine import BatchingEngine
from herdsman_server.batching.lora import LowRank, ResidentAdapter
from herdsman_server.startup import told
from herdsman_trainer.artifacts import read_manifest
from herdsman_trainer.errors import BadInput
from herdsman_trainer.tokenizers import load_tokenizer
from herdsman_trainer.weights.adapters import Adapter, load_adapter
from herdsman_trainer.weights.chain import Chain, has_tokenizer, origin_of
from herdsman_trainer.weights.lineage import Origin, check_lineage
from herdsman_trainer.weights.merge import (
    EMBEDDING,
    HEAD,
    LowRankUpdate,
    MergePlan,
    Replacement,
    plan_merge,
    without_tied_copy,
)

MERGE_IT = "Merge it with a LoRAMerge and serve the result as a model of its own."


class ResidentLoader:
    """Loads adapters into a running batching engine."""

    def __init__(self, engine: BatchingEngine, chain: Chain) -> None:
        self._engine = engine
        self._base = {spec.name: spec for spec in chain.merge.plan.specs}
        self._plan = chain.merge.plan
        self._where = str(chain.model.path)
        self._digest = chain.digests[0]
        digests = [digest or "" for digest in chain.digests[1:]]
        self._beneath = [
            Origin(str(adapter.directory), digest or None, self._digest, tuple(digests[:place]))
            for place, (adapter, digest) in enumerate(zip(chain.adapters, digests, strict=True))
        ]
        self._tokenizer = chain.tokenizer

    def load(self, name: str, directory: Path) -> None:
        """Check an adapter and put it beside the others."""
        try:
            self._engine.adapters.load(self._resident(name, directory))
        except (RuntimeError, MemoryError) as error:
            raise told(error) from None

    def unload(self, name: str) -> None:
        """Drop an adapter once nobody uses it."""
        self._engine.adapters.unload(name)

    def _resident(self, name: str, directory: Path) -> ResidentAdapter:
        adapter = load_adapter(directory)
        self._check_place(directory)
        if self._plan.tied:
            adapter = without_tied_copy(adapter)
        plan = plan_merge(self._base, [adapter], tied=self._plan.tied)
        self._check_vocabulary(directory, plan)
        model = self._engine.model
        low: dict[str, LowRank] = {}
        full: dict[str, torch.Tensor] = {}
        for tensor in plan.tensors.values():
            if not tensor.changes:
                continue
            (change,) = tensor.changes
            where = tensor.spec.name
            if isinstance(change, LowRankUpdate) and where in model.linear_shapes:
                low[where] = _low_rank(adapter, change, model.embedding)
            elif isinstance(change, Replacement) and where in (EMBEDDING, HEAD):
                full[where] = adapter.read(change.key).to(model.device, model.dtype)
            else:
                message = f"The adapter changes {where}, which is the same for all adapters while the server runs."
                raise BadInput(message, file=str(directory), hint=MERGE_IT)
        embedding, head = full.get(EMBEDDING), full.get(HEAD)
        if plan.tied and head is None:
            head = embedding
        return ResidentAdapter(name, max((pair.a.shape[0] for pair in low.values()), default=0), low, embedding, head)

    def _check_place(self, directory: Path) -> None:
        """Raise BadInput where it was trained on another model, or on other adapters than those beneath it."""
        mine = origin_of(directory, read_manifest(directory))
        check_lineage(self._where, self._digest, [*self._beneath, mine])

    def _check_vocabulary(self, directory: Path, plan: MergePlan) -> None:
        rows, ours = plan.vocab_size, self._plan.vocab_size
        own = load_tokenizer(directory) if has_tokenizer(directory) else None
        if rows == ours and (own is None or own.digest == self._tokenizer.digest):
            return
        if rows != ours:
            message = f"The adapter has {rows} embedding rows and the model that is served has {ours}."
        else:
            message = "The adapter was trained with another tokenizer than that of the model that is served."
        raise BadInput(message, reason="ArtifactMismatch", file=str(directory), hint=MERGE_IT)


def _low_rank(adapter: Adapter, change: LowRankUpdate, like: torch.Tensor) -> LowRank:
    a, b = adapter.read(change.pair.a.name).float(), adapter.read(change.pair.b.name).float()
    left, right = (a.T, b.T) if change.transposed else (b, a)
    return LowRank(right.contiguous().to(like), (left * change.scale).contiguous().to(like))
