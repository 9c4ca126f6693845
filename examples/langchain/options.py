"""What both programs are told."""

import argparse
import os
from pathlib import Path


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options of both."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--file", type=Path, required=True, help="the text, in UTF-8")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="the server's API (%(default)s)")
    parser.add_argument("--model", required=True, help="the model's name, as `herdsman get` or /v1/models says")
    parser.add_argument("--max-tokens", type=int, default=400, help="tokens of an answer (%(default)s)")
    parser.set_defaults(key=os.environ.get("HERDSMAN_API_KEY", "none"))
    return parser
