"""One run per home."""

import subprocess
import sys

import pytest

from herdsman.local.lock import HomeBusy, HomeLock, holder

HOLDS = """
import sys, time
from pathlib import Path
from herdsman.local.lock import HomeLock
with HomeLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_holder_is_refused_with_the_first_ones_process_id_and_a_killed_one_is_replaced(tmp_path):
    path = tmp_path / "lock"
    first = subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"held\n"
    with pytest.raises(HomeBusy, match=rf"process {first.pid} is at work.*herdsman stop"):
        HomeLock(path).__enter__()
    assert holder(path) == first.pid
    first.kill()
    first.communicate()
    with HomeLock(path):
        assert path.read_text().strip().isdigit()
    assert holder(path) is None


def test_a_home_without_a_lock_has_no_holder(tmp_path):
    assert holder(tmp_path / "lock") is None


def test_asking_for_the_holder_does_not_disturb_a_lock_that_is_free(tmp_path):
    path = tmp_path / "lock"
    with HomeLock(path):
        pass
    assert holder(path) is None
    with HomeLock(path):
        assert path.read_text().strip().isdigit()
