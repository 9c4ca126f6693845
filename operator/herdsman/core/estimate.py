"""Estimates of GPU memory, disk and time, from shapes.

GPU memory of a training, per GPU, in bytes; the least it takes, where the recipe leaves micro-batch and recomputing to
the memory that will be there:

    frozen weights       2 a parameter (4 in float32), less in a format of fewer bits    / world with ZeRO-3
    trained weights      4, and a 16-bit copy of 2 but of an embedding                   / world with ZeRO-3
    their gradients      4                                                               / world from ZeRO-2
    Adam's two moments   8, none with offload                                            / world from ZeRO-1
    activations          tokens x what api/memory.py says that blocks keep
    at the moment        tokens x what a block needs, or the logits of a piece, up to 1 GiB

Stage Full is computed by transformers' modules: every weight and its copy; what a block keeps per token, in 16 bits
with width d, keys and values kv, feed-forward ff: norms in float32 (8 d), queries and the attention's result (4 d),
keys and values (4 kv), gate, its activation and up (6 ff), inputs of the linear layers (4 d + 2 ff); logits tokens x
vocabulary x 14: 16-bit, float32, log-softmax, gradient; and 5 % for the allocator.

Measured on an H200 (benchmarks/train.md) in GB, and the formula: 7B, vocabulary 49,953, LoRA r=8 on seven projections
with embeddings and head, 4,096 tokens: 36.0 (36.0), recomputing Full 22.1 (22.2); 2,048 tokens on an NF4 base,
recomputing Full: 11.7 (11.7); 8B, vocabulary 128,256, r=64, 8,192 tokens: 69.0 (68.5).
"""

from dataclasses import dataclass

from herdsman.api.flops import peak_flops, training_flops
from herdsman.api.memory import FORMAT_BYTES, LOGIT_BYTES, BlockShape
from herdsman.api.v1alpha1.compute import Compute
from herdsman.api.v1alpha1.recipes import PretrainRecipe, SFTRecipe, Stage
from herdsman.api.v1alpha1.status import Estimate
from herdsman.core.shapes import Shape

GIB = float(1 << 30)
ALLOCATOR = 1.05
MODULE_LOGIT_BYTES = 14
CHECKPOINT_BYTES = 12
"""A trained parameter in a checkpoint: itself and two moments, in float32."""
UTILISATION = 0.5
"""The share of the peak that is assumed for the hours."""
PRODUCT_LABEL = "nvidia.com/gpu.product"


@dataclass(frozen=True)
class Sketch:
    """An estimate, and the size of one checkpoint."""

    estimate: Estimate
    checkpoint_bytes: int = 0


@dataclass(frozen=True)
class TrainingLoad:
    """What a training's needs follow from; the recipe is resolved."""

    shape: Shape
    """With the rows that the embedding will have."""
    recipe: PretrainRecipe | SFTRecipe
    stage: Stage
    length: int
    """Tokens of a sequence."""
    compute: Compute

    @property
    def lora_parameters(self) -> int:
        """Trained parameters of LoRA."""
        lora = self.recipe.lora
        return self.shape.lora_parameters(lora.rank or 0, lora.targets or []) if self.stage == "LoRA" else 0

    @property
    def full_parameters(self) -> int:
        """Parameters of the model that are trained themselves."""
        if self.stage == "Full":
            return self.shape.parameters
        whole = self.recipe.lora.train_fully or []
        embedding = self.shape.embedding_parameters if "embed_tokens" in whole or (self.shape.tied and whole) else 0
        return embedding + (self.shape.head_parameters if "lm_head" in whole else 0)

    @property
    def trained_parameters(self) -> int:
        """All trained parameters."""
        return self.lora_parameters + self.full_parameters

    @property
    def embedding_alone(self) -> int:
        """Trained parameters of an embedding that is only looked up, and so is needed in one type alone."""
        whole = self.recipe.lora.train_fully or []
        return self.shape.embedding_parameters if "embed_tokens" in whole and not self.shape.tied else 0

    @property
    def frozen_elsewhere(self) -> int:
        """Frozen parameters outside of the blocks' products: norms, and embedding and head unless they are trained."""
        return self.shape.parameters - self.shape.linear_parameters - self.full_parameters

    @property
    def micro_tokens(self) -> int:
        """Tokens a process computes at once; one sequence where that is left to the memory that will be there."""
        return (self.recipe.batch.micro_sequences or 1) * self.length

    @property
    def half(self) -> bool:
        """Whether the matrix products are in 16 bits."""
        return self.recipe.precision != "float32"


def training(load: TrainingLoad) -> Sketch:
    """Return what a training needs; disk without the token cache, whose size only the data tells."""
    checkpoint = load.trained_parameters * CHECKPOINT_BYTES
    kept = (load.recipe.checkpoints.keep_last or 1) + load.recipe.checkpoints.best + 1
    result = load.shape.parameters * (2 if load.half else 4) if load.stage == "Full" else load.trained_parameters * 4
    return Sketch(
        Estimate(
            gpu_memory_gib=_gib(training_bytes(load)) if load.compute.gpus_per_node else None,
            disk_gib=_gib(checkpoint * kept + result),
            hours=_hours(load),
        ),
        checkpoint,
    )


def training_bytes(load: TrainingLoad) -> float:
    """Return the peak memory of one GPU; the formula stands at the top of the module."""
    stage, offload = _spread(load.recipe)
    item = 2 if load.half else 4

    def share(from_stage: int) -> float:
        return 1 / load.compute.world_size if stage >= from_stage else 1.0

    trained = load.trained_parameters
    in_blocks = FORMAT_BYTES[load.recipe.base_format] or item
    frozen = (load.shape.linear_parameters * in_blocks + load.frozen_elsewhere * item) if load.stage != "Full" else 0
    copied = trained if load.stage == "Full" else trained - load.embedding_alone
    weights = (frozen + trained * 4 + (copied * 2 if load.half else 0)) * share(3) * (offload != "all")
    state = trained * 4 * share(2) + trained * 8 * share(1) * (offload == "none")
    return (weights + state + _activations(load, item)) * (ALLOCATOR if load.stage == "Full" else 1.0)


def _spread(recipe: PretrainRecipe | SFTRecipe) -> tuple[int, str]:
    """Return the stage of ZeRO that spreads as much, and what is kept in the host's memory."""
    if recipe.fsdp is not None:
        return (3 if recipe.fsdp.reshard_after_forward else 2), "none"
    zero = recipe.deepspeed
    return (zero.zero_stage, zero.offload) if zero is not None else (0, "none")


def _activations(load: TrainingLoad, item: int) -> float:
    """Return what the tokens of a micro-batch take."""
    recompute = load.recipe.recompute or "Full"
    if load.stage != "Full":
        shape = BlockShape(
            hidden=load.shape.hidden,
            queries=load.shape.hidden,
            keys=load.shape.kv_width,
            intermediate=load.shape.intermediate,
            layers=load.shape.layers,
        )
        logits = min(load.micro_tokens * load.shape.vocabulary * item, LOGIT_BYTES)
        kept, passing = shape.kept_bytes(recompute, item), shape.passing_bytes(recompute, item)
        return load.micro_tokens * kept + max(load.micro_tokens * passing, logits)
    block = load.micro_tokens * block_bytes(load)
    logits = load.micro_tokens * load.shape.vocabulary * MODULE_LOGIT_BYTES
    if recompute == "None":
        return block * load.shape.layers + logits
    return load.micro_tokens * load.shape.layers * load.shape.hidden * item + block + logits


def block_bytes(load: TrainingLoad) -> int:
    """Return what a block of transformers' modules keeps per token where all of it is trained."""
    d, kv, ff = load.shape.hidden, load.shape.kv_width, load.shape.intermediate
    kept = 8 * d + 4 * d + 4 * kv + 6 * ff + 4 * d + 2 * ff
    return kept if load.half else 2 * kept


def stored(parameters: int, bytes_each: float) -> Sketch:
    """Return what storing a model needs, in all of its forms together."""
    return Sketch(Estimate(disk_gib=_gib(parameters * bytes_each)))


def serving(shape: Shape, compute: Compute, tokens: int) -> Sketch:
    """Return what one replica needs: 16-bit weights, the keys and values of one conversation, and its last logits."""
    if not compute.gpus_per_node:
        return Sketch(Estimate())
    cache = 4 * shape.layers * shape.kv_width * tokens
    return Sketch(Estimate(gpu_memory_gib=_gib(ALLOCATOR * (2 * shape.parameters + cache + 6 * shape.vocabulary))))


def flops_per_token(load: TrainingLoad) -> float:
    """Return the model's operations per trained token."""
    shape = load.shape
    linear, head = shape.linear_parameters, shape.embedding_parameters
    full = load.stage == "Full"
    trained_head = full or "lm_head" in (load.recipe.lora.train_fully or [])
    frozen = (0 if full else linear) + (0 if trained_head else head)
    trained = linear + head - frozen + load.lora_parameters
    return training_flops(frozen=frozen, trained=trained, length=load.length, width=shape.hidden, layers=shape.layers)


def _hours(load: TrainingLoad) -> float | None:
    """Hours at UTILISATION of the peak, where the steps and, by a node selector, the GPU's product are known."""
    product = load.compute.node_selector.get(PRODUCT_LABEL, "")
    peak = peak_flops(product)
    gpus = load.compute.nodes * load.compute.gpus_per_node
    if peak is None or load.recipe.max_steps is None or gpus == 0:
        return None
    tokens = load.recipe.max_steps * (load.recipe.batch.global_sequences or 1) * load.length
    recompute = 4 / 3 if load.recipe.recompute == "Full" else 1.0
    return round(tokens * flops_per_token(load) * recompute / (gpus * peak * UTILISATION) / 3600, 1)


def _gib(size: float) -> float:
    return round(size / GIB, 2 if size < GIB else 1)
