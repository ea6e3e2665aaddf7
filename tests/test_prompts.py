"""Prompts: formats with and without a chat template, turns that stay open, stop strings."""

from __future__ import annotations

import pytest
from tiny_models import CHATML, CLOSING, tiny_tokenizer

from restrl.prompts import FENCE, PromptFormat, cut_at_stop, value_text
from restrl.records import Asserts, Calls, Check, Problem, Stdio

HEADERLESS = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{{ eos_token }}{% endfor %}"
ALWAYS_OPEN = (
    "{% for m in messages %}U: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)
THINKING = CHATML + (
    "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "closing": CLOSING,
    "headerless": HEADERLESS,
    "open": ALWAYS_OPEN,
    "thinking": THINKING,
}


def human_eval() -> Problem:
    code = 'def add(x, y):\n    """Sum."""\n'
    return Problem(
        task_id="HumanEval/0",
        source="humaneval",
        prompt=code,
        mode="complete",
        entry_point="add",
        prefix=code,
        tests=Check(code="def check(c):\n    assert c(1, 2) == 3\n", entry_point="add"),
    )


def mbpp(**changes: object) -> Problem:
    values = {
        "task_id": "1",
        "source": "mbpp",
        "prompt": "Write a function that adds two numbers.",
        "mode": "instruct",
        "entry_point": "add_two",
        "tests": Asserts(asserts=["assert add_two(1, 2) == 3"]),
    }
    return Problem.model_validate(values | changes)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("problem", [human_eval(), mbpp()], ids=["complete", "instruct"])
def test_a_chat_prompt_ends_in_the_opened_fence_and_states_are_only_appended(
    template: str, problem: Problem
) -> None:
    form = PromptFormat(tiny_tokenizer(384, template))
    assert form.chat
    header = form.header(problem)
    assert header.endswith(FENCE)
    assert header.count(problem.prompt.strip()) == 1
    assert not header.removesuffix(FENCE).rstrip().endswith("<|endoftext|>")
    for lines in ("", "import math\n", "import math\nx = 1\n"):
        prompt = form.prompt(problem, problem.prefix + lines, "key")
        assert prompt.text == header + problem.prefix + lines
        assert prompt.text[prompt.answer_from :] == lines
        assert form.header(problem) == header
    assert form.stops(problem) == ("\n```",)


def test_chat_turns_are_rendered_by_the_template() -> None:
    header = PromptFormat(tiny_tokenizer(384, CHATML)).header(mbpp())
    assert header.startswith("<|im_start|>user\nWrite a function")
    assert header.endswith("<|im_end|>\n<|im_start|>assistant\n```python\n")
    header = PromptFormat(tiny_tokenizer(384, CLOSING)).header(mbpp())
    assert header.startswith("<|endoftext|>[INST] ") or header.startswith("[INST] ")
    assert header.endswith("[/INST] ```python\n")
    header = PromptFormat(tiny_tokenizer(384, THINKING)).header(mbpp())
    assert header.endswith("assistant\n<think>\n\n</think>\n\n```python\n")


def test_the_function_name_is_told_where_the_prompt_lacks_it() -> None:
    form = PromptFormat(tiny_tokenizer(384, CHATML))
    assert "`add_two`" in form.header(mbpp())
    assert "`add_two`" not in form.header(mbpp(task_id="2", prompt="Write add_two(a, b)."))
    stdio = mbpp(task_id="3", entry_point=None, tests=Stdio(inputs=["1"], outputs=["1"]))
    assert "standard input" in form.header(stdio)


@pytest.mark.parametrize("tokenizer", [None, tiny_tokenizer()], ids=["none", "no template"])
def test_without_a_template_code_is_continued_as_it_stands(tokenizer: object) -> None:
    form = PromptFormat(tokenizer)  # type: ignore[arg-type]
    problem = human_eval()
    assert not form.chat
    assert form.header(problem) == ""
    assert form.prompt(problem, problem.prefix, "k").answer_from == len(problem.prefix)
    assert "\ndef " in form.stops(problem)
    pipelines = problem.model_copy(update={"source": "pipelines"})
    assert form.stops(pipelines) == ()


def test_without_a_template_an_instruction_becomes_a_docstring() -> None:
    form = PromptFormat()
    problem = mbpp(prompt='Say """hi""" \\ add_two')
    header = form.header(problem)
    compile(header, "header", "exec")
    assert header.startswith('"""\n')
    assert header.endswith('\n"""\n')
    assert header.count('"""') == 2
    assert "\nprint(" in form.stops(problem)
    stdio = mbpp(tests=Stdio(inputs=["1"], outputs=["1"]))
    assert "\nprint(" not in form.stops(stdio)
    calls = mbpp(tests=Calls(fn_name="f", args=[[1]], expected=[1]))
    assert "\nassert " in form.stops(calls)


def test_cut_at_stop() -> None:
    assert cut_at_stop("a\n```\nb", ("\n```",)) == ("a", True)
    assert cut_at_stop("a\nb", ("\n```",)) == ("a\nb", False)
    assert cut_at_stop("a\n#\nb\ndef ", ("\ndef ", "\n#")) == ("a", True)  # the first one in the text
    assert cut_at_stop("xyz", ()) == ("xyz", False)


def test_a_stop_string_may_begin_in_the_state_but_not_end_there() -> None:
    assert cut_at_stop("```\nmore", ("\n```",), "x = 1\n") == ("", True)
    assert cut_at_stop("x = 2", ("\n```",), "x = 1\n```") == ("x = 2", False)
    assert cut_at_stop("`` rest", ("\n```",), "a\n`") == ("", True)
    assert cut_at_stop("def g", ("\ndef ",), "\ndef f():\n") == ("", True)


def test_value_text_is_the_published_template() -> None:
    text, start = value_text(mbpp(prompt="Add."), "def f():\n    pass\n")
    assert text == "\n<prompt>\nAdd.\n<answer>\ndef f():\n    pass\n\n"
    assert text[start:] == "def f():\n    pass\n\n"
