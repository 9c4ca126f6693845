"""Summarises a text file: `python summary.py --file doc.txt`."""

import chains
from options import make_parser


def main() -> None:
    """Print the summary."""
    parser = make_parser(__doc__)
    parser.add_argument("--chain", choices=["refine", "stuff"], default="refine", help="(%(default)s)")
    given = parser.parse_args()
    llm = chains.chat_model(given.url, given.model, given.key, given.max_tokens)
    pieces = chains.pieces_of(given.file)
    print((chains.summary_refine if given.chain == "refine" else chains.summary_stuff)(llm, pieces))


if __name__ == "__main__":
    main()
