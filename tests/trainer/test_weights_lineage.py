"""The order of adapters follows from digests."""

import pytest

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.lineage import Origin, check_lineage

BASE, OTHER = "b" * 64, "c" * 64
PRETRAINED = Origin("pretrained", "1" * 64, BASE)
TUNED = Origin("tuned", "2" * 64, BASE, parents=("1" * 64,))
THIRD = Origin("third", "3" * 64, BASE, parents=("1" * 64, "2" * 64))
BARE = Origin("bare")


@pytest.mark.parametrize(
    "chain",
    [[], [PRETRAINED], [PRETRAINED, TUNED], [PRETRAINED, TUNED, THIRD]],
    ids=lambda chain: " then ".join(origin.label for origin in chain) or "none",
)
def test_a_chain_in_the_order_of_training_is_accepted(chain):
    assert check_lineage("base", BASE, chain) == []


@pytest.mark.parametrize(
    ("chain", "base", "says", "remedy"),
    [
        ([PRETRAINED], OTHER, "trained on the model bbbbbbbbbbbb….*base is cccccccccccc", "Name the model"),
        (
            [TUNED, PRETRAINED],
            BASE,
            "with pretrained beneath it.*after no other adapter",
            "order fits: pretrained, tuned",
        ),
        ([THIRD, TUNED, PRETRAINED], BASE, "third", "order fits: pretrained, tuned, third"),
        ([TUNED], BASE, "with 111111111111… beneath it", f"digest {'1' * 64} before"),
        ([PRETRAINED, PRETRAINED], BASE, "no other adapter beneath it.*after pretrained", "Leave out"),
    ],
    ids=["another base", "swapped", "reversed", "parent left out", "twice"],
)
def test_a_chain_out_of_order_is_refused_with_the_order_that_fits(chain, base, says, remedy):
    with pytest.raises(BadInput, match=says) as caught:
        check_lineage("base", base, chain)
    assert remedy in caught.value.hint
    assert caught.value.reason == "ArtifactMismatch"


@pytest.mark.parametrize(("base", "chain"), [(None, [PRETRAINED]), (BASE, [BARE]), (BASE, [BARE, TUNED])])
def test_without_manifests_only_shapes_are_checked_and_that_is_said(base, chain):
    notes = check_lineage("base", base, chain)
    assert len(notes) == 1
    assert "only shapes were checked" in notes[0]
