"""The keys that open the API, by the environment: as a variable, or as a file that is read again when it changes."""

from collections.abc import Mapping
from pathlib import Path

from herdsman.api.job_config import API_KEY_FILE_VARIABLE, API_KEY_VARIABLE
from herdsman.api_keys import ApiKeys, keys_in
from herdsman_trainer.errors import BadInput

__all__ = ["ApiKeys", "keys_of"]


def keys_of(environment: Mapping[str, str]) -> ApiKeys:
    """Return the keys of HERDSMAN_API_KEY and of the file HERDSMAN_API_KEY_FILE, one a line; none leaves /v1 open.

    Raises BadInput where the file is named and holds no key: the server must not be open by mistake.
    """
    name = environment.get(API_KEY_FILE_VARIABLE)
    file = Path(name) if name else None
    fixed = keys_in(environment.get(API_KEY_VARIABLE, "").encode())
    return ApiKeys(fixed, file, _first_keys(file) if file is not None else ())


def _first_keys(file: Path) -> tuple[bytes, ...]:
    try:
        found = keys_in(file.read_bytes())
    except OSError as error:
        hint = "Mount the Secret there, or unset the variable."
        message = f"{API_KEY_FILE_VARIABLE} names a file that cannot be read: {error.strerror}."
        raise BadInput(message, file=str(file), hint=hint) from None
    if not found:
        raise BadInput("The file of API keys is empty.", file=str(file), hint="Write one key a line.")
    return found
