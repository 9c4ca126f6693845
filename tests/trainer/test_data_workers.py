"""Workers give back what one process would, in the same order, and nobody waits for one that died."""

import os
import signal
import subprocess
import sys
from functools import partial
from multiprocessing.connection import Pipe
from operator import mul, truediv

import pytest

from herdsman_trainer.data.cpus import WORKER_BYTES, usable_cpus, worker_count
from herdsman_trainer.data.workers import in_order
from herdsman_trainer.errors import BadInput, Temporary
from waiting import wait_until


def tagged(values):
    return iter([(f"tag {value}", value) for value in values])


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_pieces_with_their_tags(workers):
    found = list(in_order(tagged(range(20)), partial(mul, 3), workers))
    assert found == [(f"tag {value}", 3 * value) for value in range(20)]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_fault_in_the_order_of_the_pieces_is_the_one_that_is_raised(workers):
    """Also where reading ahead has failed by then."""

    def pieces():
        for number in (5, 4, 2, 0, 1):
            yield number, number
        raise BadInput("The sixth piece cannot be read.")

    found = in_order(pieces(), partial(truediv, 20), workers)
    assert [next(found) for _ in range(3)] == [(5, 4.0), (4, 5.0), (2, 10.0)]
    with pytest.raises(ZeroDivisionError):
        next(found)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_reading_raises_comes_in_its_turn_with_file_and_line(workers):
    def pieces():
        yield from tagged([1, 2, 3])
        raise BadInput("wrong", file="a.txt", line=7, hint="Mend it.")

    found = in_order(pieces(), partial(mul, 1), workers)
    assert [value for _, value in (next(found), next(found), next(found))] == [1, 2, 3]
    with pytest.raises(BadInput) as caught:
        next(found)
    assert (caught.value.file, caught.value.line, caught.value.hint) == ("a.txt", 7, "Mend it.")


def test_few_pieces_need_no_process(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    assert [value for _, value in in_order(tagged([1, 2]), lambda value: value, 8)] == [1, 2]


def test_a_worker_that_is_killed_is_a_fault_that_may_pass_and_says_what_it_lacked():
    found = in_order(tagged([signal.SIGKILL] * 3), signal.raise_signal, 2)
    with pytest.raises(Temporary) as caught:
        next(found)
    assert caught.value.reason == "OutOfMemory"
    assert "memory" in caught.value.hint


def test_a_worker_ends_when_whoever_started_it_is_gone():
    ours, theirs = Pipe()
    command = [sys.executable, "-m", "herdsman_trainer.data.worker", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()
    ours.send(len)
    ours.send((0, "abc"))
    assert ours.recv() == (0, True, 3)
    ours.close()
    assert process.wait(20) == 0


def test_no_worker_is_left_when_the_results_are_not_wanted_any_more():
    found = in_order(tagged(range(50)), partial(mul, 2), 2)
    next(found)
    found.close()
    wait_until(lambda: not _children(), "the workers have ended")


def _children():
    out = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True, check=False)
    return [line for line in out.stdout.splitlines() if "herdsman_trainer.data.worker" in line]


CGROUPS = {
    "no limit": ({"cpu.max": "max 100000"}, 8),
    "half of a CPU": ({"cpu.max": "50000 100000"}, 1),
    "two and a half": ({"cpu.max": "250000 100000"}, 3),
    "more than there are": ({"cpu.max": "9900000 100000"}, 8),
    "version 1": ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
    "version 1, no limit": ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    "no cgroup": ({}, 8),
}


def cgroup(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


@pytest.mark.parametrize("what", CGROUPS)
def test_a_containers_limit_of_cpus_is_kept(tmp_path, monkeypatch, what):
    files, expected = CGROUPS[what]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert usable_cpus({}, cgroup(tmp_path, files)) == expected
    assert worker_count({}, cgroup(tmp_path, files)) == expected


def test_what_was_granted_and_what_it_is_bound_to_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    assert usable_cpus({}, tmp_path) == 3
    assert usable_cpus({"HERDSMAN_THREADS": "2"}, tmp_path) == 2
    assert usable_cpus({"HERDSMAN_THREADS": "16"}, tmp_path) == 3


@pytest.mark.parametrize(
    ("limit", "workers"), [("max", 32), (str(10 * WORKER_BYTES), 5), (str(WORKER_BYTES), 1), ("1", 1)]
)
def test_workers_take_no_more_than_half_of_the_memory(tmp_path, monkeypatch, limit, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))
    assert worker_count({}, cgroup(tmp_path, {"memory.max": limit})) == workers
