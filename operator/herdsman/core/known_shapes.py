"""A model's shape and a tokenizer's size before they are there: from specs, annotations and artifacts."""

from herdsman.api.v1alpha1.lora_merge import LoRAMerge
from herdsman.api.v1alpha1.model_import import Initialise, ModelImport
from herdsman.api.v1alpha1.pretrain_job import PretrainJob
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.schema import OneOf
from herdsman.api.v1alpha1.sources import REFERENCE_KINDS, ModelRef, TokenizerRef
from herdsman.api.v1alpha1.status import Artifact
from herdsman.api.v1alpha1.tokenizer_merge import TokenizerMerge
from herdsman.core.shapes import PUBLISHED, Shape, approximate
from herdsman.core.world import Key, World

SHAPE_ANNOTATION = "herdsman.dev/model-shape"
"""On a ModelImport, or on a resource that reads its model from a volume: a name of PUBLISHED."""
VOCABULARY_ANNOTATION = "herdsman.dev/vocabulary"
"""On a TokenizerMerge: the number of pieces it will have."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def model_shape(reference: ModelRef, owner: AnyResource, world: World) -> Shape | None:
    """Return the shape of a referenced model, finished or not; None where nothing tells it."""
    return _model_shape(reference, owner, world, frozenset())


def resource_shape(resource: AnyResource, world: World) -> Shape | None:
    """Return the shape of the model that a resource makes, or will make; None where nothing tells it."""
    return _shape_of(resource, world, frozenset())


def vocabulary(reference: TokenizerRef | None, world: World) -> int | None:
    """Return the number of pieces of a referenced tokenizer, finished or not; None where nothing tells it."""
    source = _source(reference, world)
    if source is None:
        return None
    if (artifact := _artifact(source)) is not None and artifact.vocab_size is not None:
        return artifact.vocab_size
    if isinstance(source, TokenizerMerge):
        said = source.metadata.annotations.get(VOCABULARY_ANNOTATION, "")
        return int(said) if said.isascii() and said.isdigit() and 0 < int(said) < 10**8 else None
    shape = _shape_of(source, world, frozenset())
    return shape.vocabulary if shape is not None else None


def _model_shape(reference: ModelRef, owner: AnyResource, world: World, seen: frozenset[Key]) -> Shape | None:
    if reference.volume is not None:
        return PUBLISHED.get(owner.metadata.annotations.get(SHAPE_ANNOTATION, ""))
    source = _source(reference, world)
    return _shape_of(source, world, seen) if source is not None else None


def _shape_of(source: AnyResource, world: World, seen: frozenset[Key]) -> Shape | None:
    """Return the shape of the model a resource makes, or will make."""
    key = Key(source.kind, source.metadata.name)
    if key in seen:
        return None
    seen |= {key}
    artifact = _artifact(source)
    rows = artifact.vocab_size if artifact is not None else None
    named = PUBLISHED.get(source.metadata.annotations.get(SHAPE_ANNOTATION, ""))
    if named is not None:
        return named.with_vocabulary(rows)
    shape = None
    if isinstance(source, ModelImport) and (given := source.spec.source.initialise) is not None:
        shape = _initialised(given, rows or vocabulary(given.tokenizer, world))
    elif isinstance(source, PretrainJob):
        shape = _model_shape(source.spec.model, source, world, seen)
        shape = shape.with_vocabulary(rows or vocabulary(source.spec.tokenizer, world)) if shape is not None else None
    elif isinstance(source, LoRAMerge):
        shape = _model_shape(source.spec.model, source, world, seen)
        shape = shape.with_vocabulary(rows or _merged_rows(source, world)) if shape is not None else None
    return shape if shape is not None else _from_artifact(artifact)


def _merged_rows(merge: LoRAMerge, world: World) -> int | None:
    """Return the rows after the last adapter that brings embeddings, from its artifact or its tokenizer."""
    rows = None
    for reference in merge.spec.adapters:
        source = _source(reference, world)
        if source is not None:
            artifact = _artifact(source)
            grown = artifact.vocab_size if artifact is not None else adapter_rows(source, world)
            rows = grown or rows
    return rows


def adapter_rows(source: AnyResource, world: World) -> int | None:
    """Return the rows of the embedding that a training will have, along the adapters it goes on from."""
    for _ in range(16):  # a longer chain of continuations, or a loop, is not followed
        spec = source.spec
        tokenizer = getattr(spec, "tokenizer", None)
        if tokenizer is not None:
            return vocabulary(tokenizer, world)
        before = _source(getattr(spec, "adapter", None), world)
        if before is None:
            return None
        if (artifact := _artifact(before)) is not None and artifact.vocab_size is not None:
            return artifact.vocab_size
        source = before
    return None


def _initialised(given: Initialise, rows: int | None) -> Shape:
    return Shape(
        given.hidden_size,
        given.layers,
        given.intermediate_size,
        given.attention_heads,
        given.key_value_heads or given.attention_heads,
        rows or 32000,
        given.tie_embeddings,
    )


def _from_artifact(artifact: Artifact | None) -> Shape | None:
    if artifact is None or artifact.kind != "model" or artifact.dtype not in DTYPE_BYTES:
        return None
    if artifact.formats not in ([], ["huggingface"]):  # its bytes are those of several forms, or of another type
        return None
    return approximate(artifact.bytes // DTYPE_BYTES[artifact.dtype], artifact.vocab_size)


def _source(reference: OneOf | None, world: World) -> AnyResource | None:
    if reference is None:
        return None
    member, value = reference.chosen
    kind = REFERENCE_KINDS.get(member)
    return world.resources.get(Key(kind, value)) if kind is not None else None


def _artifact(source: AnyResource) -> Artifact | None:
    return source.status.artifact if source.status is not None else None
