"""The same manifests judged by the models and by the CRDs (and by a real API server in tests/e2e)."""

from collections import Counter

import pytest

from admission import cases, judged_by_crd, judged_by_models
from herdsman.api.v1alpha1.registry import KINDS

CREATE, UPDATE = cases("create"), cases("update")


@pytest.mark.parametrize("case", CREATE + UPDATE, ids=str)
def test_the_models_find_exactly_the_wrong_fields(case):
    assert judged_by_models(case) == case.refused


@pytest.mark.parametrize("case", CREATE + UPDATE, ids=str)
def test_the_crd_finds_exactly_the_wrong_fields(case):
    assert judged_by_crd(case) == case.refused


def test_every_kind_has_accepted_and_refused_manifests_and_changes():
    seen = Counter((case.kind, case.old is not None, bool(case.refused)) for case in CREATE + UPDATE)
    wanted = {(kind, update, refused) for kind in KINDS for update in (False, True) for refused in (False, True)}
    assert wanted - set(seen) == set()
