"""The keys of the API: from the environment and from a file, which may change while the server runs."""

import pytest

from herdsman_server.keys import keys_of
from herdsman_trainer.errors import BadInput


def opens(keys, *given):
    return [keys.opens(b"Bearer " + key) for key in given]


def test_keys_come_from_the_environment_and_from_a_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text("two\n\n three \r\n")
    assert not keys_of({}).needed
    assert opens(keys_of({}), b"") == [True]
    one = keys_of({"HERDSMAN_API_KEY": "one\nand more\n"})
    assert opens(one, b"one", b"and more", b"one\nand more") == [True, True, False]
    both = keys_of({"HERDSMAN_API_KEY": "one", "HERDSMAN_API_KEY_FILE": str(path)})
    assert opens(both, b"one", b"two", b"three", b"four", b"") == [True, True, True, False, False]


HEADERS = {
    "as it should be": (b"Bearer secret", True),
    "with another case of the scheme": (b"bearer secret", True),
    "with spaces": (b"  Bearer   secret ", True),
    "without a scheme": (b"secret", False),
    "with another scheme": (b"Basic secret", False),
    "with more behind it": (b"Bearer secretx", False),
    "with less": (b"Bearer secre", False),
    "empty": (b"", False),
    "not ASCII": ("Bearer secrét".encode(), False),
}


@pytest.mark.parametrize("what", HEADERS)
def test_the_header_is(what):
    header, opened = HEADERS[what]
    assert keys_of({"HERDSMAN_API_KEY": "secret"}).opens(header) is opened


def test_a_key_may_have_any_letters():
    assert opens(keys_of({"HERDSMAN_API_KEY": "密钥"}), "密钥".encode(), b"\xe5") == [True, False]


@pytest.mark.parametrize("content", [None, b"", b"\n \n"], ids=["absent", "empty", "blank"])
def test_a_key_file_without_a_key_does_not_open_the_server(tmp_path, content):
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        keys_of({"HERDSMAN_API_KEY_FILE": str(path)})
    assert caught.value.file == str(path)


class MountedSecret:
    """A Secret as a kubelet mounts it: a link to a link to a directory, which is exchanged in one step."""

    def __init__(self, directory):
        self._directory = directory
        self._number = 0
        self.file = directory / "keys"

    def write(self, content):
        self._number += 1
        (self._directory / f"..{self._number}").mkdir()
        (self._directory / f"..{self._number}" / "keys").write_text(content)
        (self._directory / "..data_tmp").symlink_to(f"..{self._number}")
        (self._directory / "..data_tmp").rename(self._directory / "..data")
        if not self.file.is_symlink():
            self.file.symlink_to("..data/keys")


@pytest.fixture
def secret(tmp_path):
    return MountedSecret(tmp_path)


def test_keys_are_exchanged_without_a_restart(serve, secret):
    secret.write("old")
    client = serve(keys=keys_of({"HERDSMAN_API_KEY_FILE": str(secret.file)}))

    def statuses(*keys):
        headers = [{"Authorization": f"Bearer {key}"} for key in keys]
        return [client.http.get("/v1/models", headers=header).status_code for header in headers]

    assert statuses("old", "new") == [200, 401]
    secret.write("old\nnew\n")
    assert statuses("old", "new") == [200, 200]
    secret.write("new\n")
    assert statuses("old", "new") == [401, 200]


def test_a_secret_that_becomes_empty_lets_nobody_in(secret, caplog):
    secret.write("old")
    keys = keys_of({"HERDSMAN_API_KEY_FILE": str(secret.file)})
    secret.write("")
    assert opens(keys, b"old", b"") == [False, False]
    assert "nobody is let in" in caplog.text


def test_a_file_that_goes_away_leaves_the_keys_as_they_were_and_may_come_back(secret, caplog):
    secret.write("old")
    keys = keys_of({"HERDSMAN_API_KEY_FILE": str(secret.file)})
    assert opens(keys, b"old") == [True]
    secret.file.unlink()
    assert opens(keys, b"old", b"new", b"old") == [True, False, True]
    assert caplog.text.count("the keys stay as they were") == 1
    secret.write("new")
    assert opens(keys, b"old", b"new") == [False, True]
