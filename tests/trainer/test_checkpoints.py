"""Whatever ends a save, and whatever damages a file: there is a checkpoint to go on from, or a clear refusal."""

import errno
import itertools
import os
import shutil
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch

from herdsman.api.v1alpha1.status import CheckpointStatus
from herdsman_trainer.checkpoint_manifest import MANIFEST, name_of, verify
from herdsman_trainer.checkpoints import CheckpointStore, Identity
from herdsman_trainer.distributed import Processes
from herdsman_trainer.errors import BadInput, Interrupted, Temporary
from herdsman_trainer.ownership import begin_attempt
from herdsman_trainer.training_state import PARAMETER, StateReader, write_state
from ranks import in_child

SHAPES = {"w": torch.Size([3, 4])}


def store(root, *, keep_last=2, recipe="a" * 64, attempt=1):
    return CheckpointStore(root / "checkpoints", Processes(), Identity(recipe, attempt), keep_last)


def writer(step):
    """Writes a state in which every value is the step."""

    def write(directory):
        return write_state(
            directory, SHAPES, lambda *_: torch.full((3, 4), float(step)), {"updates": step}, writes=True
        )

    return write


def save(to, *steps):
    for step in steps:
        to.save(step, writer(step), need_bytes=1000, notes={"train_loss_last": 1.5 * step})


def names(root):
    return sorted(path.name for path in (root / "checkpoints").iterdir())


def newest_step(root, **options):
    """Return the step of the newest checkpoint after checking that its content is that step's."""
    found = store(root, **options).newest()
    if found is None:
        return None
    assert StateReader(found.directory).tensor(PARAMETER, "w")[0, 0] == found.manifest.step
    return found.manifest.step


def test_a_checkpoint_brings_back_what_was_saved(tmp_path):
    save(store(tmp_path), 200)
    found = store(tmp_path, attempt=2).newest()
    assert found.directory == tmp_path / "checkpoints" / "step-00000200"
    manifest = found.manifest
    assert (manifest.step, manifest.attempt, manifest.world_size) == (200, 1, 1)
    assert manifest.notes == {"train_loss_last": 300.0}
    assert manifest.threads == torch.get_num_threads()
    state = StateReader(found.directory)
    assert torch.equal(state.tensor("exp_avg", "w"), torch.full((3, 4), 200.0))
    assert state.scalar("updates") == 200


def test_the_newest_ones_are_kept(tmp_path):
    save(store(tmp_path, keep_last=2), 1, 2, 3, 4)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_without_checkpoints_a_run_starts_fresh(tmp_path):
    assert store(tmp_path).newest() is None
    (tmp_path / "checkpoints" / "tmp-00000002-1").mkdir(parents=True)  # the first save was cut
    assert store(tmp_path).newest() is None
    save(store(tmp_path), 2)
    assert names(tmp_path) == ["step-00000002"]


def test_another_recipe_is_refused(tmp_path):
    save(store(tmp_path), 2)
    with pytest.raises(BadInput, match=r"another recipe .* \(aaaaaaaaaaaa…, now bbbbbbbbbbbb…\)") as refused:
        store(tmp_path, recipe="b" * 64).newest()
    assert "new resource" in refused.value.hint


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a flipped bit": flip,
    "a cut file": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "an empty file": lambda path: path.write_bytes(b""),
    "a missing file": lambda path: path.unlink(),
    "a longer file": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "an extra file": lambda path: (path.parent / "extra").touch(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["state.safetensors", MANIFEST])
def test_damage_is_noticed_and_the_older_checkpoint_taken(tmp_path, file, damage, caplog):
    save(store(tmp_path), 2, 4)
    DAMAGES[damage](tmp_path / "checkpoints" / name_of(4) / file)
    found = store(tmp_path).newest()
    assert found.manifest.step == 2
    assert len(found.passed_over) == 1
    assert "step-00000004" in caplog.text
    save(store(tmp_path), 3)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_a_flipped_bit_in_any_byte_of_the_manifest_is_noticed(tmp_path):
    save(store(tmp_path), 2)
    path = tmp_path / "checkpoints" / name_of(2) / MANIFEST
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=MANIFEST):
            verify(path.parent)


def test_a_checkpoint_under_another_steps_name_is_not_taken(tmp_path):
    save(store(tmp_path), 2)
    shutil.copytree(tmp_path / "checkpoints" / name_of(2), tmp_path / "checkpoints" / name_of(8))
    assert newest_step(tmp_path) == 2


def test_a_run_whose_checkpoints_are_all_damaged_never_starts_again_in_silence(tmp_path):
    save(store(tmp_path), 2, 4)
    for step in (2, 4):
        flip(tmp_path / "checkpoints" / name_of(step) / "state.safetensors")
    with pytest.raises(BadInput, match="2 checkpoints exist and none verifies") as refused:
        store(tmp_path).newest()
    assert refused.value.reason == "CheckpointLost"
    assert "delete it to start again" in refused.value.hint
    assert names(tmp_path) == [name_of(2), name_of(4)]  # nothing was touched


CALLS = ("fsync", "rename", "mkdir", "unlink", "rmdir", "open", "statvfs")


def die_at(call):
    """Make the process die at the given call of those that change the disk, before it takes effect."""
    count = itertools.count(1)

    def dying(original):
        def function(*args, **kwargs):
            if next(count) == call:
                os._exit(99)
            return original(*args, **kwargs)

        return function

    for name in CALLS:
        setattr(os, name, dying(getattr(os, name)))


@pytest.mark.parametrize("keep_last", [1, 2])
def test_a_save_may_be_killed_at_any_moment(tmp_path, keep_last):
    prepared = tmp_path / "prepared"
    save(store(prepared, keep_last=keep_last), 1, 2)
    (prepared / "checkpoints" / "tmp-00000009-1").mkdir()  # left by an earlier crash
    ends = []
    for call in itertools.count(1):
        root = tmp_path / f"call-{call}"
        shutil.copytree(prepared, root)

        def killed(root=root, call=call):
            die_at(call)
            save(store(root, keep_last=keep_last), 3)

        code = in_child(killed)
        step = newest_step(root)
        ends.append(step)
        save(store(root, keep_last=keep_last, attempt=2), *range(step + 1, 5))
        assert newest_step(root) == 4
        assert names(root) == [name_of(step) for step in range(5 - keep_last, 5)]
        if code == 0:
            break
        assert code == 99
    assert ends == sorted(ends)  # the newest checkpoint never goes back, the later the crash
    assert (ends[0], ends[-1]) == (2, 3)
    assert len(ends) > 10


def no_space(_):
    raise AssertionError("nothing may be written")


def free(monkeypatch, *sizes):
    """Let the volume have so many bytes free whenever it is asked; the last one holds."""
    asked = iter(sizes)
    last = [sizes[-1]]

    def statvfs(_):
        last[0] = next(asked, last[0])
        return SimpleNamespace(f_bavail=last[0], f_frsize=1, f_blocks=10**6)

    monkeypatch.setattr(os, "statvfs", statvfs)


def test_without_free_space_nothing_is_touched_and_both_figures_are_told(tmp_path, monkeypatch):
    save(store(tmp_path, keep_last=3), 1, 2, 3)
    before = (tmp_path / "checkpoints" / name_of(3)).stat().st_mtime_ns
    free(monkeypatch, 2**20)
    with pytest.raises(Temporary) as full:
        store(tmp_path, keep_last=3).save(4, no_space, need_bytes=2**30, notes={})
    error = full.value
    assert (error.reason, error.exit_code, error.file) == ("DiskFull", 75, str(tmp_path / "checkpoints"))
    assert error.message == (
        "The volume has no space left for a checkpoint of 1.0 GiB: 1.2 GiB are needed with a margin, "
        "and 1.0 MiB are free."
    )
    assert "keepLast" in error.hint
    assert names(tmp_path) == [name_of(1), name_of(2), name_of(3)]
    assert (tmp_path / "checkpoints" / name_of(3)).stat().st_mtime_ns == before
    assert newest_step(tmp_path) == 3


def test_a_volume_that_does_not_tell_its_free_space_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=1, f_blocks=0))
    save(store(tmp_path), 1)
    assert newest_step(tmp_path) == 1


def test_older_checkpoints_give_way_where_that_is_enough(tmp_path, monkeypatch):
    save(store(tmp_path, keep_last=3), 1, 2, 3)
    free(monkeypatch, 1199)
    save(store(tmp_path, keep_last=3), 4)
    assert names(tmp_path) == [name_of(3), name_of(4)]


def test_what_an_attempt_left_that_was_killed_while_saving_is_removed_before_space_is_asked_for(tmp_path, monkeypatch):
    left = tmp_path / "checkpoints" / "tmp-00000001-1"
    left.mkdir(parents=True)
    (left / "state.safetensors").write_bytes(b"half")
    monkeypatch.setattr(
        os, "statvfs", lambda _: SimpleNamespace(f_bavail=0 if left.exists() else 1200, f_frsize=1, f_blocks=10**6)
    )
    save(store(tmp_path, attempt=2), 1)
    assert names(tmp_path) == [name_of(1)]


def filling(written, times):
    """Writes so many bytes and finds the disk full, so many times; then writes step 3."""
    left = [times]

    def write(directory):
        if not left[0]:
            return writer(3)(directory)
        left[0] -= 1
        (directory / "state.safetensors").write_bytes(b"x" * written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return write


def test_a_disk_that_fills_while_writing_costs_nothing(tmp_path):
    save(store(tmp_path, keep_last=3), 1, 2)
    with pytest.raises(Temporary, match="no space left for a checkpoint") as full:
        store(tmp_path, keep_last=3).save(3, filling(10, times=1), 10**6, {})
    assert full.value.reason == "DiskFull"
    assert names(tmp_path) == [name_of(1), name_of(2)]


def test_a_quota_that_is_only_noticed_by_writing_is_met_where_older_checkpoints_hold_enough(tmp_path):
    save(store(tmp_path, keep_last=3), 1, 2)
    store(tmp_path, keep_last=3).save(3, filling(1000, times=1), 1000, {})
    assert names(tmp_path) == [name_of(2), name_of(3)]
    assert newest_step(tmp_path) == 3


def test_a_disk_that_stays_full_keeps_the_last_good_checkpoint(tmp_path):
    save(store(tmp_path, keep_last=3), 1, 2)
    with pytest.raises(Temporary, match="no space left for a checkpoint"):
        store(tmp_path, keep_last=3).save(3, filling(1000, times=2), 1000, {})
    assert names(tmp_path) == [name_of(2)]
    assert newest_step(tmp_path) == 2


def test_making_room_keeps_the_newest_that_verifies(tmp_path, monkeypatch):
    save(store(tmp_path, keep_last=3), 1, 2, 3)
    flip(tmp_path / "checkpoints" / name_of(3) / "state.safetensors")
    free(monkeypatch, 1199)
    save(store(tmp_path, keep_last=3), 4)
    assert names(tmp_path) == [name_of(2), name_of(4)]


def test_the_status_names_the_newest_verified_checkpoint_and_when_it_was_made(tmp_path):
    kept = store(tmp_path)
    assert kept.newest() is None
    assert kept.status() is None
    save(kept, 1, 2, 3)
    told = CheckpointStatus(latest="checkpoints/step-00000003", step=3, verified=True, count=2)
    assert kept.status() == told
    later = store(tmp_path, attempt=2)
    created = later.newest().manifest.created
    assert later.status() == told
    assert later.saved_at() == datetime.fromisoformat(created)


def test_a_volume_that_does_not_keep_what_is_written_is_reported(tmp_path, monkeypatch):
    save(store(tmp_path), 1)

    def lose(directory):
        digests = writer(2)(directory)
        flip(directory / "state.safetensors")
        return digests

    with pytest.raises(Temporary, match="does not verify"):
        store(tmp_path).save(2, lose, 1000, {})
    assert newest_step(tmp_path) == 1


@pytest.mark.parametrize("moment", ["before it writes", "while it writes"])
def test_an_older_attempt_that_lives_on_leaves_the_checkpoints_of_the_newer_one_alone(tmp_path, moment):
    old, new = store(tmp_path, attempt=1), store(tmp_path, attempt=2)
    save(old, 10)
    begin_attempt(tmp_path, 1)

    def write_late(draft):
        if moment == "while it writes":
            begin_attempt(tmp_path, 2)
        (draft / "state").write_bytes(b"late")
        return {}

    if moment == "before it writes":
        begin_attempt(tmp_path, 2)
    with pytest.raises(Interrupted, match="Attempt 2 of this run has begun"):
        old.save(20, write_late, 0, {})
    assert new.newest().manifest.step == 10
