"""Volumes on one machine."""

import pytest

from herdsman.local.home import Home
from herdsman.local.volumes import VolumeRefused, Volumes, parse_volumes


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    home.create()
    return home


def test_a_directory_of_the_user_is_remembered_as_a_link(home, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    Volumes(home).remember({"corpora": texts})
    assert Volumes(home).facts(["corpora", "other"]).keys() == {"corpora"}
    assert (home.volumes / "corpora").resolve() == texts


def test_another_directory_replaces_the_link(home, tmp_path):
    volumes = Volumes(home)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        volumes.remember({"corpora": tmp_path / name})
    assert (home.volumes / "corpora").readlink() == tmp_path / "b"


def test_files_of_the_home_are_never_hidden_behind_a_link(home, tmp_path):
    volumes = Volumes(home)
    volumes.make("corpora")
    (home.volumes / "corpora" / "a.txt").write_text("x")
    with pytest.raises(VolumeRefused, match="has a volume corpora with files in it"):
        volumes.remember({"corpora": tmp_path})


def test_a_directory_that_is_gone_is_told(home, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    volumes = Volumes(home)
    volumes.remember({"corpora": texts})
    texts.rmdir()
    facts = volumes.facts(["corpora"])["corpora"]
    assert not facts.bound
    assert str(texts) in facts.message


@pytest.mark.parametrize(
    ("option", "told"),
    [("corpora", "CLAIM=DIRECTORY"), ("=x", "CLAIM=DIRECTORY"), ("corpora=/nowhere/at/all", "is not a directory")],
)
def test_a_wrong_option_is_refused(option, told):
    with pytest.raises(VolumeRefused, match=told):
        parse_volumes([option])


def test_purging_deletes_what_was_written_and_the_volume_when_nothing_else_is_in_it(home):
    volumes = Volumes(home)
    for path in ("a/one", "a/two"):
        (home.volumes / "shared" / path).mkdir(parents=True)
    volumes.purge("shared", "a/one")
    assert (home.volumes / "shared" / "a" / "two").is_dir()
    volumes.purge("shared", "a/two")
    assert not (home.volumes / "shared").exists()


def test_purging_never_follows_a_link_out_of_the_volume(home, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (home.volumes / "shared").mkdir()
    (home.volumes / "shared" / "link").symlink_to(precious)
    assert Volumes(home).purge("shared", "link") == []
    assert precious.is_dir()


def test_purging_a_directory_of_the_user_leaves_it_its_other_files(home, tmp_path):
    mine = tmp_path / "mine"
    (mine / "runs" / "zh").mkdir(parents=True)
    (mine / "letter.txt").write_text("x")
    volumes = Volumes(home)
    volumes.remember({"work": mine})
    volumes.purge("work", "runs/zh")
    assert [path.name for path in mine.iterdir()] == ["letter.txt"]
