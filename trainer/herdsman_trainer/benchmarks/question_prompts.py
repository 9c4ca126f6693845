"""The prompts of questions: the wording of the three generations for C-Eval and CMMLU, and MMLU's own.

A prompt is text and control tokens in turn. A tokenizer that knows the control tokens' names cuts a text there and
encodes the parts one by one, so ids put together from parts are the ids it gives; text of a question never becomes a
control token here.
"""

from collections.abc import Sequence

from herdsman.api.v1alpha1.evaluation_tasks import MultipleChoice, PromptGeneration, QuestionFormat
from herdsman_trainer.benchmarks.questions import LETTERS, Question, SubjectQuestions
from herdsman_trainer.benchmarks.subjects import name_in_prompt
from herdsman_trainer.errors import BadInput
from herdsman_trainer.prompts import ALPACA_HEADER, SYSTEM_PROMPT
from herdsman_trainer.tokenizers import TextTokenizer

CMMLU_SYSTEM_PROMPT = "你是一个乐于助人的助手。"
"""What the second generation's evaluation of CMMLU takes; all others take the system prompt of the training."""
BOS = "<|begin_of_text|>"


class Control(str):
    """The name of a control token in a prompt."""

    __slots__ = ()


Prompt = Sequence[str]
"""Text and Control in turn."""


def question_prompt(asked: MultipleChoice, subject: SubjectQuestions, question: Question, shown: int) -> Prompt:
    """Return the prompt of a question behind the first `shown` examples of its subject, without BOS."""
    examples = subject.examples[:shown]
    if asked.format == "MMLU":
        return [_mmlu(subject.name, examples, question)]
    generation: PromptGeneration = asked.prompt or "chinese-llama-v1"
    name = name_in_prompt(asked.format, generation, subject.name)
    if generation == "chinese-llama-v1":
        return [_first(name, examples, question, with_template=asked.with_template)]
    if generation == "chinese-llama-v2":
        return [_second(name, examples, question, asked.format, with_template=asked.with_template)]
    return _third(name, examples, question, asked.format, with_template=asked.with_template)


def prompt_ids(prompt: Prompt, tokenizer: TextTokenizer, *, bos: bool) -> list[int]:
    """Return the ids of a prompt, behind BOS where the model starts with it; BadInput for an unknown control token."""
    ids = [tokenizer.bos_id] if bos and tokenizer.bos_id is not None else []
    for part in prompt:
        if not isinstance(part, Control):
            ids += tokenizer.encode(part)
            continue
        index = tokenizer.control_id(part)
        if index is None:
            hint = "Set multipleChoice.prompt to that of the model's generation, or leave withTemplate out."
            raise BadInput(f"The prompt needs the control token {part}, which this tokenizer does not have.", hint=hint)
        ids.append(index)
    return ids


def _body(question: Question) -> str:
    lettered = zip(LETTERS, question.choices, strict=True)
    return question.text + "".join(f"\n{letter}. {choice}" for letter, choice in lettered)


def _header(name: str) -> str:
    return f"以下是中国关于{name}考试的单项选择题，请选出其中的正确答案。\n\n"


def _solved(examples: Sequence[Question]) -> str:
    return "".join(f"{_body(example)}\n答案：{example.answer}\n\n" for example in examples)


def _first(name: str, examples: Sequence[Question], question: Question, *, with_template: bool) -> str:
    """The first generation: everything is one instruction; without examples nothing says what it is about."""
    history = f"{_header(name)}{_solved(examples)}" if examples else ""
    if not with_template:
        return f"{history}{_body(question)}\n答案："
    instruction = f"{history}{_body(question)}\n答案是什么？ "
    return f"{ALPACA_HEADER}\n\n### Instruction:\n{instruction}\n\n### Response: "


def _second(
    name: str, examples: Sequence[Question], question: Question, form: QuestionFormat, *, with_template: bool
) -> str:
    """The second generation: in its template the examples are turns of a conversation, as one text with one BOS."""
    body = f"{_body(question)}\n答案："
    if not with_template:
        return f"{_header(name)}{_solved(examples)}{body}" if examples else body
    system = f"<<SYS>>\n{CMMLU_SYSTEM_PROMPT if form == 'CMMLU' else SYSTEM_PROMPT}\n<</SYS>>\n\n"
    history = ""
    if examples:
        history = f"[INST] {system}{_header(name)} [/INST]好的，我会结合{name}相关知识回答"
        history += "".join(f"[INST] {_body(example)}\n答案：[/INST]{example.answer}\n" for example in examples)
    return f"{history}[INST] {system}{body} [/INST]"


def _third(
    name: str, examples: Sequence[Question], question: Question, form: QuestionFormat, *, with_template: bool
) -> Prompt:
    """The third generation: says what it is about also without examples; C-Eval's template writes a second BOS."""
    body = f"{_body(question)}\n答案："
    if not with_template:
        return [f"{_header(name)}{_solved(examples)}{body}"]
    start = [Control(BOS)] if form == "CEval" else []
    system = [*start, *_turn("system", SYSTEM_PROMPT)]
    if not examples:
        return [*system, *_asked(f"{_header(name)}{body}")]
    parts = [*system, *_answered(_header(name), f"好的，我会结合{name}相关知识回答")]
    for example in examples:
        parts += _answered(f"{_body(example)}\n答案：", example.answer)
    return [*parts, *_asked(body)]


def _turn(role: str, content: str) -> list[str]:
    start, end = Control("<|start_header_id|>"), Control("<|end_header_id|>")
    return [start, role, end, f"\n\n{content}", Control("<|eot_id|>")]


def _asked(content: str) -> list[str]:
    """Return a user's turn and the header of the answer."""
    return _answered(content, "")[:-1]


def _answered(content: str, answer: str) -> list[str]:
    return [*_turn("user", content), *_turn("assistant", answer)]


def _mmlu(name: str, examples: Sequence[Question], question: Question) -> str:
    """MMLU: the subject's words stand behind a blank of their own, so there are two before the first."""
    header = f"The following are multiple choice questions (with answers) about  {name.replace('_', ' ')}.\n\n"
    solved = "".join(f"{_body(example)}\nAnswer: {example.answer}\n\n" for example in examples)
    return f"{header}{solved}{_body(question)}\nAnswer:"
