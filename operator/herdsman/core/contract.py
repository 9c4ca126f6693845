"""The artifact contract: whether a tokenizer, a model and adapters fit together, before anything runs.

Digests name what an artifact is. An adapter's baseDigest is the model it was trained on; its parents are the adapters
that lay on that model, in order; vocabSize is the number of rows of the embedding, or of pieces. Inputs without a
contract (plain files on a volume) are checked by the trainer when it reads them.
"""

from collections.abc import Sequence

from herdsman.api.v1alpha1.status import Artifact, Reason
from herdsman.core.inputs import Found
from herdsman.core.plan_types import Problem
from herdsman.core.world import World


def training(
    model: Found, adapter: Found | None, tokenizer: Found | None, world: World, *, trains_rows: bool
) -> Problem | None:
    """Return why a training cannot start from these, or None.

    `trains_rows` says whether the embeddings are trained, so that a larger tokenizer's new rows are kept.
    """
    if adapter is not None and (problem := _continued(model, adapter, world)) is not None:
        return problem
    carrier = adapter if adapter is not None and adapter.artifact and adapter.artifact.vocab_size else model
    if tokenizer is None or tokenizer.artifact is None or carrier.artifact is None:
        return None
    pieces, rows = tokenizer.artifact.vocab_size, carrier.artifact.vocab_size
    ours, theirs = tokenizer.artifact.tokenizer_digest, carrier.artifact.tokenizer_digest
    if pieces is None or rows is None or (ours is not None and ours == theirs):
        return None
    sides = f"{_tokenizer(tokenizer)} has {pieces} pieces, and the embedding of {carrier.label} has {rows} rows"
    if pieces < rows:
        hint = f"Leave {_short(tokenizer.field)} out, so that the tokenizer of {carrier.label} is used"
        if rows == pieces + 1:
            hint += ", or make this one with padToken: true (one piece more, [PAD])"
        return _mismatch(f"{sides}: a tokenizer may add pieces, never take any away.", f"{hint}.", tokenizer.field)
    if pieces == rows and ours is not None and theirs is not None:
        return _mismatch(
            f"{sides}, yet it is another tokenizer ({ours[:12]}… and {theirs[:12]}…), so ids would name other pieces.",
            f"Leave {_short(tokenizer.field)} out, or name the tokenizer that {carrier.label} was made with.",
            tokenizer.field,
        )
    if pieces > rows and not trains_rows:
        return _mismatch(
            f"{sides}, and recipe.lora.trainFully leaves the embeddings out: the new rows would never be trained.",
            "Set recipe.lora.trainFully: [embed_tokens, lm_head], or leave the tokenizer out.",
            tokenizer.field,
        )
    return None


def chain(model: Found, adapters: Sequence[Found], world: World) -> Problem | None:
    """Return why these adapters cannot be applied to the model in this order, or None."""
    for place, adapter in enumerate(adapters):
        problem = _base(model, adapter, world) or _place(adapters, place)
        if problem is not None:
            return problem
    return _rows(model, adapters)


def _continued(model: Found, adapter: Found, world: World) -> Problem | None:
    if adapter.artifact is not None and adapter.artifact.parents:
        return _mismatch(
            f"{adapter.label} was trained with {len(adapter.artifact.parents)} other adapter(s) beneath it, "
            "and a training goes on from one adapter directly on its model.",
            f"Merge what lies beneath it and {adapter.label} into the model with a LoRAMerge, name that as the model, "
            "and leave the adapter out.",
            adapter.field,
        )
    return chain(model, [adapter], world)


def _base(model: Found, adapter: Found, world: World) -> Problem | None:
    if model.artifact is None or adapter.artifact is None or adapter.artifact.base_digest is None:
        return None
    base = adapter.artifact.base_digest
    if base == model.artifact.digest:
        return None
    made_by = _maker(base, world)
    if made_by is not None and made_by.startswith("LoRAMerge "):
        hint = f"Name {made_by} as the model, and leave out the adapters that are merged into it."
    elif made_by is not None:
        hint = f"Name {made_by} as the model."
    else:
        hint = "Name the model it was trained on; if that was deleted and made anew, train the adapter anew."
    trained_on = f"{made_by} ({base[:12]}…)" if made_by else f"the model {base[:12]}…, which is not here"
    return _mismatch(
        f"{adapter.label} was trained on {trained_on}, "
        f"and {_short(model.field)} is {model.label} ({model.artifact.digest[:12]}…).",
        hint,
        adapter.field,
    )


def _place(adapters: Sequence[Found], place: int) -> Problem | None:
    adapter = adapters[place]
    if adapter.artifact is None or _follows(adapter.artifact, adapters[:place]):
        return None
    labels = {found.artifact.digest: found.label for found in adapters if found.artifact}
    wanted = ", then ".join(labels.get(parent, f"{parent[:12]}…") for parent in adapter.artifact.parents)
    got = ", then ".join(found.label for found in adapters[:place])
    beneath = f"with {wanted} beneath it" if wanted else "with no other adapter beneath it"
    here = f"after {got}" if got else "first"
    return _mismatch(
        f"{adapter.label} was trained {beneath}, and here it comes {here}.",
        _order_hint(adapter.artifact, adapters, labels),
        adapter.field,
    )


def _order_hint(artifact: Artifact, adapters: Sequence[Found], labels: dict[str, str]) -> str:
    # An adapter with n parents can only stand in place n, so sorting by their number finds the one order that may fit.
    order = sorted(adapters, key=lambda found: len(found.artifact.parents) if found.artifact else 0)
    fits = all(found.artifact is None or _follows(found.artifact, order[:n]) for n, found in enumerate(order))
    if fits and [found.field for found in order] != [found.field for found in adapters]:
        return f"This order fits: {', '.join(found.label for found in order)}."
    missing = [parent for parent in artifact.parents if parent not in labels]
    if missing:
        return f"Add the adapter with the digest {missing[0][:12]}… before it."
    return "Leave out the adapters it was not trained with; one that was continued is part of its continuation."


def _follows(artifact: Artifact, before: Sequence[Found]) -> bool:
    """Whether the adapters before it are its parents, as far as they have a contract."""
    return len(before) == len(artifact.parents) and all(
        found.artifact is None or found.artifact.digest == parent
        for found, parent in zip(before, artifact.parents, strict=True)
    )


def _rows(model: Found, adapters: Sequence[Found]) -> Problem | None:
    """Embeddings only grow, and an adapter without embeddings has the tokenizer of what it lies on."""
    below = model
    for adapter in adapters:
        if adapter.artifact is None or below.artifact is None:
            return None
        rows, had = adapter.artifact.vocab_size, below.artifact.vocab_size
        ours, theirs = adapter.artifact.tokenizer_digest, below.artifact.tokenizer_digest
        if rows is not None and had is not None and rows < had:
            hint = "Apply the adapter with the smaller vocabulary first, or name one trained with the larger"
            if had == rows + 1:
                hint += "; one row more is usually [PAD], from a TokenizerMerge with padToken: true"
            return _mismatch(
                f"{adapter.label} has embeddings of {rows} rows, and {below.label} beneath it has {had}.",
                f"{hint}.",
                adapter.field,
            )
        if rows is None and ours is not None and theirs is not None and ours != theirs:
            return _mismatch(
                f"{adapter.label} brings no embeddings and was trained with another tokenizer "
                f"({ours[:12]}…) than that of {below.label} ({theirs[:12]}…).",
                f"Name a model with that tokenizer, or train the adapter on {below.label} with its own.",
                adapter.field,
            )
        below = adapter if rows is not None else below
    return None


def _maker(digest: str, world: World) -> str | None:
    for key in sorted(world.resources):
        status = world.resources[key].status
        if status is not None and status.artifact is not None and status.artifact.digest == digest:
            return str(key)
    return None


def _tokenizer(found: Found) -> str:
    return found.label if found.label.startswith("TokenizerMerge") else f"the tokenizer of {found.label}"


def _short(field: str) -> str:
    """Return the field without the member: spec.model for spec.model.modelImport."""
    return ".".join(field.split(".")[:2])


def _mismatch(message: str, hint: str, field: str) -> Problem:
    return Problem(Reason.ARTIFACT_MISMATCH, f"{field}: {message}", hint, field)
