"""logs: every rank, in the order of time, over lost connections and new attempts."""

import asyncio

import pytest

from herdsman.kubectl.following import _whole_second
from herdsman.kubectl.log_lines import Line, Source, in_order
from kubectl.objects import failed, labels, pod, pretrain, running, server, server_pod, succeeded


def at(second, text, fraction="000000000"):
    return f"2026-01-02T03:00:{second:02}.{fraction}Z {text}"


def nothing():
    """Nothing happens."""


@pytest.fixture
def two(cluster):
    """A training of two nodes at work."""
    cluster.add(pretrain(compute={"nodes": 2}), **running())
    for rank in range(2):
        cluster.add(pod(rank))
        cluster.logs[f"pj-zh-1-{rank}-abcde", "trainer"] = [at(rank, "begins"), at(3 + rank, "saves")]
    return cluster


def test_all_ranks_are_told_in_the_order_of_time(two, plugin):
    code, out, err = plugin("logs", "pj", "zh")
    assert (code, err) == (0, "")
    assert out.splitlines() == ["rank 0 | begins", "rank 1 | begins", "rank 0 | saves", "rank 1 | saves"]


def test_one_rank_is_told_as_it_is(two, plugin):
    assert plugin("logs", "pj/zh", "--rank", "1")[1] == "begins\nsaves\n"


def test_tail_takes_the_last_lines_of_each(two, plugin):
    assert plugin("logs", "pj", "zh", "--tail", "1")[1].splitlines() == ["rank 0 | saves", "rank 1 | saves"]


def test_the_newest_attempt_is_meant_unless_another_is_named(two, plugin):
    two.add(pod(0, attempt=2))
    two.logs["pj-zh-2-0-abcde", "trainer"] = [at(9, "goes on")]
    assert plugin("logs", "pj", "zh")[1] == "goes on\n"
    assert plugin("logs", "pj", "zh", "--attempt", "1")[1].startswith("rank 0 | begins")


def test_a_rank_that_there_is_not_is_refused_with_those_there_are(two, plugin):
    code, _, err = plugin("logs", "pj", "zh", "--rank", "2")
    assert (code, "no pod of rank 2; there are 0, 1" in err) == (1, True)


def test_a_pod_that_has_not_started_is_said_to_wait(two, plugin):
    two.add(pod(1, state="waiting"))
    _, out, err = plugin("logs", "pj", "zh")
    assert out == "begins\nsaves\n"
    assert err == "pj-zh-1-1-abcde has not started: ErrImagePull: no such image\n"


def test_a_container_before_the_main_one_is_named(two, plugin):
    init = {"name": "unpack", "state": {"terminated": {"exitCode": 0}}}
    two.get("Pod", "pj-zh-1-0-abcde")["status"]["initContainerStatuses"] = [init]
    two.logs["pj-zh-1-0-abcde", "unpack"] = [at(0, "unpacks", "1")]
    assert "rank 0 unpack | unpacks" in plugin("logs", "pj", "zh")[1].splitlines()


def test_pods_that_have_written_nothing_are_said_to_have(two, plugin):
    for rank in range(2):
        two.logs[f"pj-zh-1-{rank}-abcde", "trainer"] = []
    code, out, err = plugin("logs", "pj", "zh")
    assert (code, out, "PretrainJob/zh has written nothing" in err) == (0, "", True)


def test_a_preflight_is_told_from_the_ranks(two, plugin):
    checks = two.add(pod(0, state="ended"))
    checks["metadata"]["labels"]["herdsman.dev/preflight"] = "true"
    two.objects.pop(("Pod", "team", "pj-zh-1-1-abcde"))
    two.get("PretrainJob", "zh")["status"] = succeeded()
    two.add(pod(0, attempt=2, state="ended"))
    two.logs["pj-zh-2-0-abcde", "trainer"] = [at(9, "trains")]
    _, out, err = plugin("logs", "pj", "zh", "-f", "--attempt", "1")
    assert out.splitlines() == ["preflight | begins", "preflight | saves"]
    assert err.splitlines()[0] == "attempt 1 of PretrainJob/zh, a preflight:"


def test_the_pods_of_a_server_are_told_by_their_suffix(cluster, plugin):
    cluster.add(server(replicas=2), phase="Ready")
    for second, suffix in enumerate(("aaaaa", "bbbbb")):
        name = cluster.add(server_pod(suffix))["metadata"]["name"]
        cluster.logs[name, "server"] = [at(second, "serves")]
    assert plugin("logs", "ms", "chat")[1].splitlines() == ["aaaaa | serves", "bbbbb | serves"]
    plugin("logs", "ms", "chat", "--previous")
    assert [query.get("previous") for _, path, query, _ in cluster.seen if path.endswith("/log")][-2:] == ["true"] * 2
    assert plugin("logs", "ms", "chat", "--rank", "0")[0] == 2


GONE = {
    "nothing ran yet": ({"phase": "Waiting"}, [], "PretrainJob/zh has no pods (it is Waiting)"),
    "its pods are gone": (
        failed(),
        [],
        "gone, and their logs with them; it ended after 30m00s (BadInput, exit code 42)",
    ),
    "it never had that attempt": (failed(), ["--attempt", "4"], "PretrainJob/zh has no attempt 4; there are 1"),
    "its pods are gone and it is followed": (succeeded(), ["-f"], "it ended after 30m00s (Succeeded, exit code 0)"),
}


@pytest.mark.parametrize(("status", "options", "told"), GONE.values(), ids=GONE)
def test_it_is_said_plainly_why_there_is_no_log(cluster, plugin, status, options, told):
    cluster.add(pretrain(), **status)
    code, _, err = plugin("logs", "pj", "zh", *options)
    assert (code, told in err) == (1, True), err


def end(cluster, rank, attempt=1, code=0):
    """Let a pod end."""
    ended = pod(rank, attempt=attempt, state="ended", code=code)
    cluster.get("Pod", ended["metadata"]["name"])["status"] = ended["status"]


def test_follow_goes_on_over_attempts_until_the_run_is_final(two, plugin):
    zh = two.get("PretrainJob", "zh")

    def first_ends():
        two.logs["pj-zh-1-0-abcde", "trainer"].append(at(5, "falls"))
        end(two, 0, code=1)
        two.objects.pop(("Pod", "team", "pj-zh-1-1-abcde"))

    def second_begins():
        two.logs["pj-zh-2-0-abcde", "trainer"] = [at(20, "resumes"), at(21, "ends")]
        two.logs["pj-zh-2-1-abcde", "trainer"] = [at(20, "resumes too")]
        for rank in range(2):
            two.add(pod(rank, attempt=2, state="ended"))

    def over():
        zh["status"] = succeeded()

    two.on["/pretrainjobs/zh"] += [
        nothing,
        nothing,
        first_ends,
        nothing,
        second_begins,
        nothing,
        over,
    ]
    code, out, err = plugin("logs", "pj", "zh", "-f")
    assert code == 0
    lines = out.splitlines()
    assert lines.count("rank 0 | begins") == 1
    assert lines.index("rank 0 | falls") < lines.index("rank 0 | resumes") < lines.index("rank 0 | ends")
    assert "rank 1 | resumes too" in lines
    assert "attempt 2 of PretrainJob/zh:" in err.splitlines()
    assert err.splitlines()[-1] == "PretrainJob/zh is Succeeded: in 30m00s"


def test_a_connection_that_breaks_off_loses_no_line_and_tells_none_twice(cluster, plugin):
    cluster.add(pretrain(), **succeeded())
    cluster.add(pod(0, state="running"))
    lines = [at(0, "one"), at(0, "two", "5"), at(1, "three"), at(2, "four")]
    cluster.logs["pj-zh-1-0-abcde", "trainer"] = lines
    cluster.cut.add("pj-zh-1-0-abcde")
    cluster.on["/pods/pj-zh-1-0-abcde"] += [nothing, lambda: end(cluster, 0)]
    cluster.on["/pods/pj-zh-1-0-abcde/log"] += [nothing, lambda: end(cluster, 0)]
    code, out, _ = plugin("logs", "pj", "zh", "--follow")
    assert (code, out) == (0, "one\ntwo\nthree\nfour\n")
    since = [query.get("sinceTime") for _, path, query, _ in cluster.seen if path.endswith("/log")]
    assert since == [None, "2026-01-02T03:00:00Z"]


def test_follow_waits_for_the_first_pod_and_says_what_for(cluster, plugin):
    zh = cluster.add(pretrain(), phase="Queued", failure={"reason": "Unschedulable", "message": "0/3 nodes fit."})

    def begins():
        cluster.add(pod(0, state="ended"))
        cluster.logs["pj-zh-1-0-abcde", "trainer"] = [at(0, "works")]
        zh["status"] = succeeded()

    cluster.on["/pretrainjobs/zh"] += [*[nothing] * 4, begins]
    code, out, err = plugin("logs", "pj", "zh", "-f")
    assert (code, out) == (0, "works\n")
    assert err.splitlines()[0] == "PretrainJob/zh is Queued: 0/3 nodes fit."


def test_follow_of_one_attempt_ends_with_it(two, plugin):
    zh = two.get("PretrainJob", "zh")
    zh["status"]["attempts"] = [{**failed()["attempts"][0]}, {"number": 2}]
    end(two, 0), end(two, 1)
    two.add(pod(0, attempt=2))
    code, out, _ = plugin("logs", "pj", "zh", "-f", "--attempt", "1")
    assert (code, min(out.splitlines())) == (0, "rank 0 | begins")


def test_follow_says_when_the_resource_is_deleted(two, plugin):
    def gone():
        for key in [key for key in two.objects if key[0] in ("Pod", "PretrainJob")]:
            two.objects.pop(key)

    two.on["/pretrainjobs/zh"] += [nothing, nothing, gone]
    code, _, err = plugin("logs", "pj", "zh", "-f")
    assert (code, "PretrainJob/zh is gone" in err) == (1, True)


def test_what_may_not_be_read_ends_following(two, plugin):
    two.refusals["GET", "/log"] = 403, "pods/log is forbidden"
    code, _, err = plugin("logs", "pj", "zh", "-f")
    assert (code, "pods/log is forbidden; ask for a role" in err) == (1, True)


def test_lines_of_the_same_moment_stay_in_the_order_of_their_ranks():
    async def given(*lines):
        for line in lines:
            yield Line.parse(line)

    async def merged():
        sources = [Source(f"pod-{rank}", f"uid-{rank}", "trainer", 1, rank) for rank in range(3)]
        logs = [given(at(1, "a"), "no time at all", at(0, "late")), given(at(1, "b")), given()]
        return [(source.rank, line.text) async for source, line in in_order(list(zip(sources, logs, strict=True)))]

    assert asyncio.run(merged()) == [(0, "a"), (0, "time at all"), (0, "late"), (1, "b")]


@pytest.mark.parametrize(
    ("time", "whole"),
    [
        ("2026-01-02T03:00:05.123456789Z", "2026-01-02T03:00:05Z"),
        ("2026-01-02T03:00:05.12+02:00", "2026-01-02T03:00:05+02:00"),
        ("2026-01-02T03:00:05Z", "2026-01-02T03:00:05Z"),
    ],
)
def test_a_log_is_asked_for_since_a_whole_second(time, whole):
    assert _whole_second(time) == whole


def test_labels_are_those_the_operator_sets():
    from builders import pretrain_job
    from herdsman.core import names

    assert labels("PretrainJob", "zh", 3) == names.labels(pretrain_job("zh"), 3)
