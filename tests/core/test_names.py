"""Names of children: valid, bounded, distinct."""

import re

from hypothesis import given
from hypothesis import strategies as st

from herdsman.api.meta import DNS_LABEL, MAX_NAME
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.core import names

POD_SUFFIX = "-255-abcde"
"""What Kubernetes adds to the name of an Indexed Job for a pod."""
LONGEST = 63

resource_names = st.from_regex(DNS_LABEL, fullmatch=True).filter(lambda name: len(name) <= MAX_NAME)
kinds = st.sampled_from(sorted(KINDS))
attempts = st.integers(1, 99_999)


@given(kinds, resource_names, attempts)
def test_every_name_is_a_dns_label_that_leaves_room_for_a_pods_suffix(kind, name, attempt):
    for child in (names.job(kind, name, attempt), names.claim(kind, name), names.server(name)):
        assert re.fullmatch(DNS_LABEL, child)
        assert len(child + POD_SUFFIX) <= LONGEST


@given(st.tuples(kinds, resource_names, attempts), st.tuples(kinds, resource_names, attempts))
def test_two_runs_share_a_jobs_name_only_if_they_are_the_same_run(one, other):
    assert (names.job(*one) == names.job(*other)) == (one == other)


@given(st.tuples(kinds, resource_names), st.tuples(kinds, resource_names))
def test_two_resources_share_a_claim_or_a_directory_only_if_they_are_the_same(one, other):
    assert (names.claim(*one) == names.claim(*other)) == (one == other)
    assert (names.default_path(*one) == names.default_path(*other)) == (one == other)
