"""Checkpoints behind the training's back: it goes on meanwhile, hears of errors, and waits where it has to."""

import errno
import os
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from herdsman_trainer import checkpoint_saver
from herdsman_trainer.checkpoint_manifest import name_of
from herdsman_trainer.checkpoint_saver import THREAD, CheckpointSaver
from herdsman_trainer.checkpoints import CheckpointStore, Identity
from herdsman_trainer.distributed import Processes
from herdsman_trainer.errors import Interrupted, Temporary
from herdsman_trainer.heartbeat import Heart
from herdsman_trainer.host_memory import free_memory
from herdsman_trainer.ownership import begin_attempt
from herdsman_trainer.training_state import StateReader
from numeric_engine import NumericEngine

SECONDS = 20.0
"""What a test waits for a thread before it fails."""


class Gate:
    """Holds the writing thread before it writes, until it is opened."""

    def __init__(self, monkeypatch, folder):
        self.reached, self.open = threading.Event(), threading.Event()
        self.threads = []
        save = folder.save

        def held(*arguments):
            self.threads.append(threading.current_thread().name)
            self.reached.set()
            assert self.open.wait(SECONDS)
            save(*arguments)

        monkeypatch.setattr(folder, "save", held)


def saver(root, engine, background=True, *, keep_last=3, attempt=1):
    store = CheckpointStore(root / "checkpoints", Processes(), Identity("a" * 64, attempt), keep_last)
    return CheckpointSaver(store, engine, Processes(), background), store


def filled(value):
    engine = NumericEngine()
    engine.gather("parameter", "w").fill_(value)
    return engine


def content(store, step):
    return StateReader(store.root / name_of(step)).tensor("parameter", "w").tolist()


def test_what_is_written_is_the_state_of_the_step_and_the_training_goes_on_meanwhile(tmp_path, monkeypatch):
    engine = filled(1.0)
    saving, store = saver(tmp_path, engine)
    gate = Gate(monkeypatch, store.folder)
    saving.save(1, {"train_loss_last": 2.5})
    assert gate.reached.wait(SECONDS)
    engine.gather("parameter", "w").fill_(2.0)  # the next step, in place
    assert not saving.is_news()
    gate.open.set()
    saving.finish()
    assert content(store, 1) == [1.0] * 4
    assert store.newest().manifest.notes == {"train_loss_last": 2.5}
    assert gate.threads == [THREAD]
    assert saving.is_news()
    assert not saving.is_news()  # told once


def test_one_is_on_its_way_at_most(tmp_path, monkeypatch):
    engine = filled(1.0)
    saving, store = saver(tmp_path, engine)
    gate = Gate(monkeypatch, store.folder)
    saving.save(1, {})
    assert gate.reached.wait(SECONDS)
    threading.Timer(0.05, gate.open.set).start()
    engine.gather("parameter", "w").fill_(2.0)
    saving.save(2, {})  # waits, and only then copies over what was written
    saving.finish()
    assert (content(store, 1), content(store, 2)) == ([1.0] * 4, [2.0] * 4)


def test_the_last_one_is_on_the_volume_when_it_is_asked_for_at_once(tmp_path, monkeypatch):
    engine = filled(1.0)
    saving, store = saver(tmp_path, engine)
    saving.save(1, {})
    engine.gather("parameter", "w").fill_(2.0)
    saving.save(2, {}, at_once=True)
    assert (content(store, 1), content(store, 2)) == ([1.0] * 4, [2.0] * 4)
    assert store.status().step == 2


def test_a_full_disk_is_heard_of_and_older_checkpoints_stay(tmp_path, monkeypatch):
    saving, store = saver(tmp_path, filled(1.0))
    saving.save(1, {})
    saving.finish()
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=3, f_frsize=1, f_blocks=10**6))
    saving.save(2, {})
    checkpoint_saver.HEART.wait_for(saving._writing, 0)
    assert saving.failed
    with pytest.raises(Temporary, match="of 48 bytes: 58 bytes are needed with a margin, and 3 bytes are free") as full:
        saving.finish()
    assert full.value.reason == "DiskFull"
    assert not saving.failed  # it is said once
    assert store.newest().manifest.step == 1
    assert not saving.is_news() or store.status().step == 1


def test_a_disk_that_fills_while_writing_is_met_by_what_older_checkpoints_hold(tmp_path, monkeypatch):
    saving, store = saver(tmp_path, filled(1.0))
    for step in (1, 2):
        saving.save(step, {})
    saving.finish()
    write, left = saving._copy.write, [1]

    def filling(directory):
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(directory)

    monkeypatch.setattr(saving._copy, "write", filling)
    saving.save(3, {})
    saving.finish()
    assert sorted(path.name for path in store.root.iterdir()) == [name_of(2), name_of(3)]


def test_an_older_attempt_that_lives_on_hears_of_the_newer_one(tmp_path):
    saving, _ = saver(tmp_path, filled(1.0))
    begin_attempt(tmp_path, 2)
    saving.save(1, {})
    with pytest.raises(Interrupted, match="Attempt 2 of this run has begun"):
        saving.finish()


def test_the_end_of_a_run_that_failed_waits_for_what_is_being_written(tmp_path, monkeypatch, caplog):
    saving, store = saver(tmp_path, filled(1.0))
    gate = Gate(monkeypatch, store.folder)
    saving.save(1, {})
    threading.Timer(0.05, gate.open.set).start()
    saving.close()
    assert store.newest().manifest.step == 1
    monkeypatch.setattr(store.folder, "save", lambda *_: 1 // 0)
    saving.save(2, {})
    saving.close()
    assert "is lost" in caplog.text


@pytest.mark.parametrize(
    ("asked", "free", "in_background"),
    [(None, 10**9, True), (None, 50, False), (None, None, True), (False, 10**9, False), (True, 50, True)],
    ids=["there is room", "there is none", "nothing tells", "not wanted", "wanted in any case"],
)
def test_memory_decides_unless_the_recipe_does(tmp_path, monkeypatch, caplog, asked, free, in_background):
    monkeypatch.setattr(checkpoint_saver, "free_memory", lambda: free)
    caplog.set_level("INFO")
    saving, store = saver(tmp_path, filled(1.0), asked)
    saving.save(1, {})
    assert (saving._writing is not None) is in_background
    saving.finish()
    assert content(store, 1) == [1.0] * 4
    if free == 50 and asked is None:
        assert "a copy takes 48 bytes, and 50 bytes of memory are free" in caplog.text


def test_what_the_writer_does_hides_no_stall_of_the_training():
    now = [0.0]
    heart = Heart(lambda: now[0])
    heart.limit = 10.0
    patience = []

    def write():
        with heart.beside(), heart.handling(10**12):
            now[0] = 5.0
            heart.beat(activity="writing")
            patience.append(heart.patience())

    thread = threading.Thread(target=write)
    thread.start()
    thread.join(SECONDS)
    assert (heart.last, heart.activity, patience) == (0.0, "starting", [10.0])


def test_while_the_training_waits_for_the_writer_its_beats_count_and_a_slow_disk_gets_time(monkeypatch):
    monkeypatch.setattr("herdsman_trainer.heartbeat._JOIN_SECONDS", 0.01)
    now = [0.0]
    heart = Heart(lambda: now[0])
    heart.limit = 10.0
    patience, heard = [], []

    def write():
        with heart.beside():
            now[0] = 5.0
            for _ in range(int(SECONDS / 0.002)):
                heart.beat()
                if heart.last == 5.0:
                    heard.append(True)
                    break
                time.sleep(0.002)
            patience.append(heart.patience())

    thread = threading.Thread(target=write)
    thread.start()
    heart.wait_for(thread, size=int(20e6 * 30))
    assert patience == [40.0]  # 30 seconds more, for 20 MB a second
    assert (heard, heart.patience()) == ([True], 10.0)


def groups(root, lines, **files):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 100 kB\nMemAvailable:    2000 kB\n")
    (root / "proc/self/cgroup").write_text(lines)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return free_memory(root)


def test_free_memory_is_what_the_tightest_limit_leaves(tmp_path):
    assert groups(tmp_path / "none", "") == 2000 * 1024
    limited = {"memory_dot_max": "1000000\n", "memory_dot_current": "700000\n"}
    assert groups(tmp_path / "v2", "0::/\n", **limited) == 300000
    cached = {**limited, "memory_dot_stat": "anon 1\ninactive_file 200000\n"}
    assert groups(tmp_path / "cache", "0::/\n", **cached) == 500000
    above = {"memory_dot_max": "max\n", "a__memory_dot_max": "900000\n", "a__memory_dot_current": "500000\n"}
    assert groups(tmp_path / "above", "0::/a/b\n", **above) == 400000
    old = {"memory__memory_dot_limit_in_bytes": "600000\n", "memory__memory_dot_usage_in_bytes": "500000\n"}
    assert groups(tmp_path / "v1", "4:memory,cpu:/\n", **old) == 100000
    unlimited = {**old, "memory__memory_dot_limit_in_bytes": "9223372036854771712\n"}
    assert groups(tmp_path / "unlimited", "4:memory:/\n", **unlimited) == 2000 * 1024
    assert free_memory(tmp_path / "nothing") is None
    assert (free_memory() or 0) > 0


def test_a_copy_keeps_its_buffers(tmp_path):
    engine = filled(1.0)
    saving, _ = saver(tmp_path, engine)
    saving.save(1, {})
    places = {name: item.data_ptr() for name, item in saving._copy._buffers.items()}
    saving.save(2, {})
    saving.finish()
    assert {name: item.data_ptr() for name, item in saving._copy._buffers.items()} == places
    assert set(places) == {"parameter/w", "exp_avg/w", "exp_avg_sq/w"}
    assert all(item.dtype == torch.float32 for item in saving._copy._buffers.values())
