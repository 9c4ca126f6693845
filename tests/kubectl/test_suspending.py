"""suspend and resume: what is written, what is refused, what is waited for."""

import pytest

from kubectl.objects import condition, failed, pretrain, running, server


@pytest.fixture
def zh(cluster):
    return cluster.add(pretrain(), **running())


def written(cluster):
    return [(path.rpartition("/")[2], body) for method, path, _, body in cluster.seen if method == "PATCH"]


def test_suspend_writes_one_field_under_a_name_of_its_own(cluster, plugin, zh):
    code, out, _ = plugin("suspend", "pj", "zh")
    assert (code, out) == (0, "PretrainJob/zh suspended; its pods save and end\n")
    assert written(cluster) == [("zh", {"spec": {"suspend": True}})]
    assert next(query for method, _, query, _ in cluster.seen if method == "PATCH") == {
        "fieldManager": "kubectl-herdsman"
    }


def test_resume_lets_it_go_on(cluster, plugin, zh):
    zh["spec"]["suspend"] = True
    code, out, _ = plugin("resume", "pj", "zh")
    assert (code, out) == (0, "PretrainJob/zh resumed; it goes on from its newest checkpoint\n")
    assert written(cluster) == [("zh", {"spec": {"suspend": False}})]


@pytest.mark.parametrize(("command", "told"), [("suspend", "is suspended already"), ("resume", "is not suspended")])
def test_what_is_so_already_is_left_alone(cluster, plugin, zh, command, told):
    zh["spec"]["suspend"] = command == "suspend"
    code, out, _ = plugin(command, "pj", "zh")
    assert (code, told in out, written(cluster)) == (0, True, [])


def test_wait_waits_for_the_operator_to_say_so(cluster, plugin, zh):
    def stopped():
        zh["status"] |= {"phase": "Suspended", "observedGeneration": 2}
        zh["status"]["conditions"].append(condition("Suspended", "True", "Suspended"))

    cluster.on["/pretrainjobs/zh"] += [lambda: None, lambda: None, lambda: None, stopped]
    code, out, _ = plugin("suspend", "pj", "zh", "--wait")
    assert (code, out.splitlines()[-1]) == (0, "PretrainJob/zh is Suspended")
    assert len([path for path in cluster.requests("GET") if path.endswith("/zh")]) == 4


def test_wait_gives_up_after_its_timeout(cluster, plugin, zh):
    code, _, err = plugin("suspend", "pj", "zh", "--wait", "--timeout", "0.05")
    assert code == 1
    assert "is still Running after 0 s; kubectl herdsman describe pretrainjob zh tells why" in err


def test_a_server_is_scaled_instead(cluster, plugin):
    cluster.add(server(), phase="Ready")
    code, _, err = plugin("suspend", "ms", "chat", "-n", "team")
    assert code == 1
    assert "kubectl -n team scale modelserver/chat --replicas=0" in err
    assert written(cluster) == []


def test_a_finished_run_is_not_stopped_and_the_others_are(cluster, plugin, zh):
    cluster.add(pretrain("old"), **failed())
    code, out, err = plugin("suspend", "pj", "old", "gone", "zh")
    assert code == 1
    assert "PretrainJob/old is finished (it is Failed) and cannot be suspended" in err
    assert "PretrainJob/gone does not exist" in err
    assert [name for name, _ in written(cluster)] == ["zh"]
    assert "PretrainJob/zh suspended" in out
