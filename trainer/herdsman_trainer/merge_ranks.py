"""Ranks for the merges of a SentencePiece BPE: with them the tokenizers library segments nearly as SentencePiece does.

SentencePiece joins the pair whose piece has the highest score, the leftmost of equal ones. The tokenizers library knows
only ranks, one for each pair. Scores of the original pieces are all different and become ranks exactly. All appended
pieces score 0 and only "leftmost first" orders them, which no ranks can say in full: for every two merges (l, r) and
(r, x) that compete for r, the first should rank higher, and such wishes form cycles. The order here violates few.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from herdsman_trainer.sentencepiece_proto import Piece, PieceType

ROUNDS = 6
"""Sweeps of the local search; later ones gain next to nothing."""


@dataclass(frozen=True)
class Merge:
    """Two pieces whose joining is a piece."""

    left: str
    right: str
    score: float


def ranked_merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Return all pairs of pieces that join to a piece, the pair to be merged first at the front.

    Deterministic: pairs of equal score keep the order of `pieces` except where `_leftmost_first` moves them.
    """
    merges = _merges(pieces)
    by_score: dict[float, list[Merge]] = defaultdict(list)
    for merge in merges:
        by_score[merge.score].append(merge)
    ordered = [merge for score in sorted(by_score, reverse=True) for merge in _leftmost_first(by_score[score])]
    return [(merge.left, merge.right) for merge in ordered]


def _merges(pieces: Sequence[Piece]) -> list[Merge]:
    normal = {piece.text for piece in pieces if piece.type is PieceType.NORMAL}
    merges = []
    for piece in pieces:
        if piece.type is PieceType.NORMAL:
            splits = ((piece.text[:at], piece.text[at:]) for at in range(1, len(piece.text)))
            merges += [Merge(left, right, piece.score) for left, right in splits if left in normal and right in normal]
    return merges


def _leftmost_first(merges: list[Merge]) -> list[Merge]:
    """Order merges of equal score by local search on the feedback arc set of their wishes.

    Each merge in turn takes the place among the others that violates the fewest of its own wishes.
    """
    after = _wishes(merges)
    before: dict[int, dict[int, int]] = defaultdict(dict)
    for first, seconds in after.items():
        for second, weight in seconds.items():
            before[second][first] = weight
    if not after:
        return merges
    pull = [sum(before[each].values()) - sum(after[each].values()) for each in range(len(merges))]
    order = sorted(range(len(merges)), key=lambda each: pull[each])
    for _ in range(ROUNDS):
        places = dict(zip(order, map(float, range(len(order))), strict=True))
        for each in range(len(merges)):
            if before[each] or after[each]:
                places[each] = _best_place(places, before[each], after[each])
        order = sorted(range(len(merges)), key=lambda each: (places[each], each))
    return [merges[each] for each in order]


def _best_place(places: dict[int, float], before: dict[int, int], after: dict[int, int]) -> float:
    """Return the place with the least weight of wishes violated: `before` should lie in front of it, `after` behind."""
    steps = sorted(
        [(places[other], -weight) for other, weight in before.items()]
        + [(places[other], weight) for other, weight in after.items()]
    )
    best, place, change = 0, steps[0][0] - 1.0, 0
    for index, (position, weight) in enumerate(steps):
        change += weight
        if change < best:
            following = steps[index + 1][0] if index + 1 < len(steps) else position + 1.0
            best, place = change, (position + following) / 2
    return place


def _wishes(merges: Sequence[Merge]) -> dict[int, dict[int, int]]:
    """Return for each merge (l, r) the merges it should precede: (r, x), and for those that make l also (r, x)."""
    by_left: dict[str, list[int]] = defaultdict(list)
    making: dict[str, list[int]] = defaultdict(list)
    for index, merge in enumerate(merges):
        by_left[merge.left].append(index)
        making[merge.left + merge.right].append(index)
    after: dict[int, dict[int, int]] = defaultdict(dict)
    for index, merge in enumerate(merges):
        for rival in by_left.get(merge.right, ()):
            for first in (index, *making.get(merge.left, ())):
                if first != rival:
                    after[first][rival] = after[first].get(rival, 0) + 1
    return after
