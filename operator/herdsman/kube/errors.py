"""What may go wrong between Herdsman and the API server, sorted by what to do about it."""


class ApiError(Exception):
    """The API server refused a request."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        """Seconds the server asked to wait, with 429 and 503."""

    @property
    def temporary(self) -> bool:
        """Whether the same request may succeed later without anybody changing anything."""
        return self.status == 429 or self.status >= 500


class NotFound(ApiError):
    """The object does not exist."""


class Conflict(ApiError):
    """Somebody else has written the object, or owns the field or the name."""


class Unreachable(Exception):
    """No answer at all: the connection failed or timed out."""


def api_error(status: int, body: dict[str, object], retry_after: float | None) -> ApiError:
    """Return the error for a metav1.Status body."""
    kind = NotFound if status == 404 else Conflict if status == 409 else ApiError
    return kind(status, str(body.get("reason") or "Unknown"), str(body.get("message") or "no message"), retry_after)


class NameTaken(Exception):
    """An object of somebody else has a child's name: looked at again at once, because now it is known."""


class StillThere(Exception):
    """An object of an earlier resource of the same name is being removed: tried again when it is gone."""
