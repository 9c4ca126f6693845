"""`python -m herdsman_trainer.data.worker FD`: encodes pieces that come over the connection, until it ends."""

import gc
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any


def serve(connection: "Connection[Any, Any]") -> None:
    """Take the function, and then (number, piece) after (number, piece); answer with (number, whether it went well,
    result or error).
    """
    encode = connection.recv()
    gc.freeze()
    gc.disable()  # nothing here makes circles, and lists of millions of numbers are slow to look through
    while True:
        number, piece = connection.recv()
        try:
            answer = number, True, encode(piece)
        except Exception as error:  # noqa: BLE001 - it is raised where the piece came from
            answer = number, False, error
        connection.send(answer)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # who started this decides when it ends
    try:
        serve(Connection(int(sys.argv[1])))
    except (EOFError, OSError):
        sys.exit(0)
