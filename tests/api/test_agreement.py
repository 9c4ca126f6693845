"""Whatever stands in whatever field, the models and the CRDs refuse the same."""

import pytest

from admission import judged_by_crd, judged_by_models
from herdsman.api.v1alpha1.registry import KINDS
from odd_manifests import odd_manifests


@pytest.mark.parametrize("kind", KINDS)
def test_every_odd_value_in_every_field_is_judged_alike(kind):
    verdicts = {True: 0, False: 0}
    for case in odd_manifests(kind):
        models, crd = judged_by_models(case), judged_by_crd(case)
        # Not always the same fields: the CRD stops after unknown ones, the models before rules around a wrong one.
        assert models == crd or set(models) & set(crd), f"{case}: the models refuse {models}, the CRD {crd}"
        verdicts[not models] += 1
    assert min(verdicts.values()) > 50, "both accepted and refused manifests are among them"
