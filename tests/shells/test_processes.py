"""Processes of pods: their ends are recorded, whatever is killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from herdsman.local import pod_process
from herdsman.local.processes import PodPlace, Processes
from waiting import wait_until


def python(code):
    return [sys.executable, "-IS", "-c", code]


SLEEPS = "import time\nwhile True: time.sleep(0.01)"
IGNORES = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\n{SLEEPS}"
SAVES = (
    f"import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\nprint('ready', flush=True)\n{SLEEPS}"
)


@pytest.fixture
def place(tmp_path):
    place = PodPlace(tmp_path, 0)
    yield place
    Processes().kill(place)


def start(processes, place, code, *, grace=30, kept=False):
    processes.start(place, python(code), dict(os.environ), grace=grace, kept=kept)


def end_of(processes, place):
    wait_until(lambda: not processes.state(place).running, "the process has ended")
    return processes.state(place)


def is_ready(place):
    return place.log.exists() and "ready" in place.log.read_text()


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("pass", 0),
        ("import sys; sys.exit(42)", 42),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 139),
    ],
    ids=["success", "an exit code", "SIGKILL", "a segmentation fault"],
)
def test_the_exit_code_is_recorded(place, code, exit_code):
    processes = Processes()
    start(processes, place, code)
    assert end_of(processes, place).exit_code == exit_code
    state = Processes().state(place)
    assert (state.exit_code, state.stopped, state.lost) == (exit_code, False, False)
    assert state.started <= state.ended


def test_a_command_that_does_not_exist_ends_with_127_and_says_so(place):
    processes = Processes()
    processes.start(place, ["/nowhere/python"], {}, grace=1, kept=False)
    assert end_of(processes, place).exit_code == 127
    assert "/nowhere/python" in place.log.read_text()


def test_terminating_lets_the_process_save(place):
    processes = Processes()
    start(processes, place, SAVES)
    wait_until(lambda: is_ready(place), "it listens")
    processes.terminate(place)
    state = end_of(processes, place)
    assert (state.exit_code, state.stopped) == (75, True)


def test_after_the_grace_period_a_process_is_killed(place):
    processes = Processes()
    start(processes, place, IGNORES, grace=1)
    wait_until(lambda: is_ready(place), "it listens")
    processes.terminate(place)
    assert end_of(processes, place).exit_code == 137


def test_killing_does_not_wait(place):
    processes = Processes()
    start(processes, place, IGNORES, grace=600)
    wait_until(lambda: is_ready(place), "it listens")
    processes.kill(place)
    state = end_of(processes, place)
    assert (state.exit_code, state.stopped) == (137, True)


def test_what_a_process_leaves_behind_dies_with_it(place):
    child = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-IS', '-c', {SLEEPS!r}]).pid)"
    processes = Processes()
    start(processes, place, child)
    end_of(processes, place)
    orphan = int(place.log.read_text())
    wait_until(lambda: not _works(orphan), "the orphan is gone")


def test_when_the_supervisor_is_killed_the_process_saves_and_its_end_is_recorded(place):
    supervisor = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys, time; from pathlib import Path\n"
            "from herdsman.local.processes import PodPlace, Processes\n"
            "Processes().start(PodPlace(Path(sys.argv[1]), 0), sys.argv[2:], dict(os.environ), grace=30, kept=False)\n"
            "time.sleep(600)",
            str(place.directory),
            *python(SAVES),
        ]
    )
    wait_until(lambda: is_ready(place), "it listens")
    assert Processes().state(place).running
    supervisor.kill()
    supervisor.wait()
    state = end_of(Processes(), place)
    assert (state.exit_code, state.stopped) == (75, True)


def test_when_the_parent_of_the_process_is_killed_too_it_is_lost_after_its_end(place):
    processes = Processes()
    start(processes, place, SAVES)
    wait_until(lambda: is_ready(place), "it listens")
    os.kill(processes.state(place).pid, signal.SIGKILL)
    state = end_of(processes, place)
    assert (state.lost, state.exit_code) == (True, None)


def test_a_recycled_process_id_is_not_taken_for_ours(place):
    mine = {"pid": os.getpid(), "startTime": "1", "boot": pod_process.boot_id(), "started": 1.0}
    place.process.write_text(json.dumps(mine))
    state = Processes().state(place)
    assert (state.running, state.lost) == (False, True)
    Processes().terminate(place)


def test_a_process_of_another_boot_is_gone(place):
    mine = {"pid": os.getpid(), "startTime": pod_process.start_time(os.getpid()), "boot": "another", "started": 1.0}
    place.process.write_text(json.dumps(mine))
    assert Processes().state(place).lost


def test_a_kept_process_survives_its_supervisor(place):
    code = (
        "import os, sys; from pathlib import Path\n"
        "from herdsman.local.processes import PodPlace, Processes\n"
        "p = PodPlace(Path(sys.argv[1]), 0)\n"
        "Processes().start(p, sys.argv[2:], dict(os.environ), grace=30, kept=True)\n"
        "while not (p.log.exists() and p.log.read_text()): pass"
    )
    subprocess.run([sys.executable, "-c", code, str(place.directory), *python(SAVES)], check=True)
    processes = Processes()
    assert processes.state(place).running
    processes.terminate(place)
    assert end_of(processes, place).exit_code == 75


def _works(pid):
    try:
        return pod_process_state(pid) not in "ZX"
    except FileNotFoundError:
        return False


def pod_process_state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
