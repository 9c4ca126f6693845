"""Files of questions as C-Eval, CMMLU and MMLU publish them, and what is wrong with others."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from evaluations import answered, dataset, question_files
from herdsman.api.v1alpha1.evaluation_tasks import MultipleChoice
from herdsman_trainer.benchmarks import archives, questions
from herdsman_trainer.benchmarks.prompt_files import read_prompts
from herdsman_trainer.benchmarks.text_tasks import read_texts
from herdsman_trainer.errors import BadInput
from herdsman_trainer.held_out import settle_threshold, split_hash, split_threshold


def asked(**fields):
    return MultipleChoice.model_validate_json(json.dumps({"dataset": dataset(), **fields}))


def read_subjects(source, wanted):
    return questions.read_subjects(source, wanted, source.parent / "scratch")


@pytest.mark.parametrize(
    ("form", "split", "fields"),
    [("CEval", "val", {}), ("CMMLU", "test", {}), ("MMLU", "test", {}), ("MMLU", "val", {"split": "Validation"})],
)
def test_all_three_formats_are_read(tmp_path, form, split, fields):
    files = question_files(tmp_path, {"logic": answered("AB"), "law": answered("C")}, form=form, split=split)
    law, logic = read_subjects(files, asked(format=form, fewShot=2, **fields))
    assert (law.name, logic.name) == ("law", "logic")
    assert [question.answer for question in logic.questions] == ["A", "B"]
    assert logic.questions[1].choices == ("山里", "大海", "天空", "学校")
    assert logic.questions[1].line == (2 if form == "MMLU" else 3)
    assert len(logic.examples) == 2


def test_cells_are_taken_as_they_are_written(tmp_path):
    files = question_files(tmp_path, {"logic": [('Say "x", then\nstop', "1", "1.50", "None", " NA", "C")]})
    (question,) = read_subjects(files, asked(fewShot=0))[0].questions
    assert (question.text, question.choices) == ('Say "x", then\nstop', ("1", "1.50", "None", " NA"))


def test_json_lines_have_the_same_columns(tmp_path):
    (tmp_path / "val").mkdir()
    record = {"question": "1+1=?", "A": 1, "B": 2, "C": 3, "D": 4, "answer": "B"}
    (tmp_path / "val/logic_val.jsonl").write_text(json.dumps(record) + "\n")
    (question,) = read_subjects(tmp_path, asked(fewShot=0))[0].questions
    assert (question.choices, question.answer) == (("1", "2", "3", "4"), "B")


def test_a_byte_order_mark_and_blank_lines_are_no_questions(tmp_path):
    files = question_files(tmp_path, {"logic": answered("A")})
    path = files / "val/logic_val.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n,,,,,,,\r\n")
    assert len(read_subjects(files, asked(fewShot=0))[0].questions) == 1


def test_only_some_subjects_and_questions(tmp_path):
    files = question_files(tmp_path, {name: answered("ABCD") for name in ("law", "logic", "art")})
    found = read_subjects(files, asked(subjects=["logic", "art"], maxQuestions=3, fewShot=0))
    assert [(subject.name, len(subject.questions)) for subject in found] == [("art", 3), ("logic", 3)]


HEAD = "id,question,A,B,C,D,answer,explanation\n"
BAD = {
    "a missing column": (HEAD.replace("D,", "") + "0,q,1,2,3,A,\n", "no column 'D'; there are id, question, A", 1),
    "several missing columns": ("question,answer\nq,A\n", "no columns 'A', 'B', 'C', 'D'", 1),
    "a test without answers": ("id,question,A,B,C,D\n0,q,1,2,3,4\n", "no column 'answer'", 1),
    "a short row": (HEAD + "0,q,1,2,3,4,A,x\n1,q,1,2\n", "The row has 4 cells, and there are 8 columns", 3),
    "an answer that is no letter": (HEAD + "0,q,1,2,3,4,E,x\n", "The answer is 'E'.", 2),
    "an empty answer": (HEAD + "0,q,1,2,3,4,,x\n", "The answer is ''.", 2),
    "an empty question": (HEAD + "0, ,1,2,3,4,A,x\n", "The question is empty.", 2),
    "a quote that is not closed": (HEAD + '0,"q,1,2,3,4,A,x\n', "Malformed CSV", 2),
    "no question": (HEAD, "The file has no questions.", None),
}


@pytest.mark.parametrize("sentence", BAD)
def test_a_bad_file_is_named_with_its_line_and_a_remedy(tmp_path, sentence):
    text, message, line = BAD[sentence]
    files = question_files(tmp_path, {"logic": answered("A")})
    (files / "val/logic_val.csv").write_text(text)
    with pytest.raises(BadInput) as caught:
        read_subjects(files, asked(fewShot=0))
    assert message in caught.value.message
    assert (caught.value.file, caught.value.line) == (str(files / "val/logic_val.csv"), line)
    assert caught.value.hint


def test_a_file_that_is_not_utf8_is_named_with_the_command_that_converts_it(tmp_path):
    files = question_files(tmp_path, {"logic": answered("A")})
    (files / "val/logic_val.csv").write_bytes((HEAD + "0,河水,1,2,3,4,A,x\n").encode("gb18030"))
    with pytest.raises(BadInput, match="not UTF-8") as caught:
        read_subjects(files, asked(fewShot=0))
    assert "iconv" in caught.value.hint
    assert caught.value.line == 2


def test_what_is_missing_is_told_with_what_is_there(tmp_path):
    files = question_files(tmp_path, {"logic": answered("A")}, examples=3)
    cases = {
        "There is no folder 'test' here; it holds dev, val": asked(split="Test"),
        "There are no questions on the subject 'cooking'": asked(subjects=["cooking"]),
        "The file has 3 examples, and fewShot is 5": asked(fewShot=5),
    }
    for message, wanted in cases.items():
        with pytest.raises(BadInput) as caught:
            read_subjects(files, wanted)
        assert message in caught.value.message
        assert caught.value.hint
    (files / "dev/logic_dev.csv").unlink()
    (files / "dev/notes.txt").touch()
    with pytest.raises(BadInput, match=r"The folder has no file of CEval") as caught:
        read_subjects(files, asked(fewShot=1))
    assert "dev/SUBJECT_dev.csv" in caught.value.hint


@pytest.mark.parametrize("form", ["zip", "gztar"])
@pytest.mark.parametrize("within", ["", "data"])
def test_an_archive_is_read_as_it_was_published(tmp_path, form, within):
    question_files(tmp_path / "all" / within, {"logic": answered("AB")})
    (tmp_path / "all/._logic_val.csv").write_text("a file of another system")
    archive = Path(shutil.make_archive(str(tmp_path / "there" / "ceval"), form, tmp_path / "all"))
    for source in (archive, archive.parent):
        (subject,) = questions.read_subjects(source, asked(), tmp_path / "scratch")
        assert (len(subject.questions), len(subject.examples)) == (2, 5)
    assert sorted(path.suffix for path in (tmp_path / "scratch").rglob("*") if path.is_file()) == [".csv", ".csv"]


def test_an_archive_writes_nowhere_else_and_not_without_end(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as opened:
        opened.writestr("../val/logic_val.csv", "x")
        opened.writestr("/val/logic_val.csv", "x")
        opened.writestr("val/run.py", "x")
    with pytest.raises(BadInput, match="There is no folder 'val'"):
        questions.read_subjects(tmp_path / "bad.zip", asked(), tmp_path / "in/scratch")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["bad.zip"]
    monkeypatch.setattr(archives, "MOST_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "large.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("val/logic_val.csv", "x" * 100000)
    with pytest.raises(BadInput, match="unpacks to more than"):
        questions.read_subjects(tmp_path / "large.zip", asked(), tmp_path / "scratch")


def test_an_archive_that_is_none_is_told(tmp_path):
    for name in ("ceval.zip", "mmlu.tar"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1")
        with pytest.raises(BadInput, match="The archive cannot be read") as caught:
            questions.read_subjects(tmp_path / name, asked(), tmp_path / "scratch")
        assert "Download it again" in caught.value.hint


def test_prompts_come_from_lines_or_records(tmp_path):
    (tmp_path / "a.txt").write_text("你好！\n\nWhat is SQL?\n")
    (tmp_path / "b.jsonl").write_text('{"instruction": "Translate.", "input": "猫", "output": "cat"}\n')
    found = read_prompts(tmp_path, 10)
    assert [(each.text, each.reference) for each in found] == [
        ("你好！", ""),
        ("What is SQL?", ""),
        ("Translate.\n猫", "cat"),
    ]
    assert len(read_prompts(tmp_path, 2)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "x"}', 'no key "instruction" (its keys: prompt)'),
        ('{"instruction": 7}', 'the key "instruction" is no string'),
        ('{"instruction": " "}', 'the key "instruction" is empty'),
        ('{"instruction": "x", "output": ["y"]}', 'the key "output" is no string'),
        ('{"instruction": "\\ud83d"}', "half of a surrogate pair"),
        ('{"instruction": ', "Malformed JSON"),
        ("\n", "The files hold no prompts"),
    ],
)
def test_records_that_are_no_prompts_are_refused_with_their_line(tmp_path, text, message):
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(BadInput) as caught:
        read_prompts(tmp_path, 10)
    assert message in caught.value.message
    assert caught.value.hint


def test_the_held_out_documents_are_those_no_training_saw(tmp_path):
    lines = [f"line number {n}" for n in range(200)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    limit = settle_threshold(split_threshold(0.1), *(f(map(split_hash, lines)) for f in (min, max)))
    expected = [line for line in lines if split_hash(line) < limit]
    assert 5 < len(expected) < 40
    assert read_texts(tmp_path, "Line", 0.1, None) == expected
    assert read_texts(tmp_path, "Line", 0.1, 3) == expected[:3]
    assert read_texts(tmp_path, "Line", None, None) == lines


def test_of_a_tiny_corpus_the_one_document_is_evaluated_that_a_training_holds_out_of_it(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (held_out,) = read_texts(tmp_path, "Line", 0.001, None)
    assert held_out == min(("one", "two"), key=split_hash)


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("first\n河水\n".encode("gb18030"))
    with pytest.raises(BadInput, match="not UTF-8") as caught:
        read_texts(tmp_path, "Line", None, None)
    assert (caught.value.file, caught.value.line) == (str(tmp_path / "a.txt"), 2)


def test_text_that_is_not_there_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("only one\n")
    with pytest.raises(BadInput, match=r"nothing that heldOutFraction 0\.1 holds out"):
        read_texts(tmp_path, "Line", 0.1, None)
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(BadInput, match="holds no text"):
        read_texts(tmp_path, "Line", None, None)
