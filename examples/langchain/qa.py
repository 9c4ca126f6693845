"""Answers questions about a text file: `python qa.py --file doc.txt`, then one question a line."""

import sys

import chains
from options import make_parser


def main() -> None:
    """Read the text, and answer until the end of the input."""
    parser = make_parser(__doc__)
    parser.add_argument("--chain", choices=["refine", "stuff"], default="refine", help="(%(default)s)")
    parser.add_argument("--k", type=int, default=1, help="pieces of the text that an answer is made from (%(default)s)")
    parser.add_argument("--embeddings-url", help="another server for the embeddings (that of the answers)")
    parser.add_argument("--embeddings-model", help="and its model")
    parser.add_argument("question", nargs="*", help="a question; without one they are read from the input")
    given = parser.parse_args()
    llm = chains.chat_model(given.url, given.model, given.key, given.max_tokens)
    embeddings = chains.embedding_model(
        given.embeddings_url or given.url, given.embeddings_model or given.model, given.key
    )
    found = chains.retriever(chains.pieces_of(given.file), embeddings, given.k)
    answer = (chains.qa_refine if given.chain == "refine" else chains.qa_stuff)(llm, found)
    for question in [" ".join(given.question)] if given.question else (line.strip() for line in sys.stdin):
        if question:
            print(answer(question), flush=True)


if __name__ == "__main__":
    main()
