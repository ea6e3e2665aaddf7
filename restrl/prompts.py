"""How a problem becomes a model input: header (instruction, opened turn) + state (the program so far).

Four formats, by the problem's mode and by whether the tokenizer has a chat template:

            with a chat template                                without
complete    instruction with the code, opened turn, fence       header "": the code itself is continued
instruct    instruction, opened assistant turn, fence           the instruction as a docstring, then code

The header is the same for every state of a problem and a state is only ever appended to it, so a
continuation never opens the assistant turn again. No torch here.
"""

from __future__ import annotations

from typing import Any, Protocol

from restrl.policy import Prompt
from restrl.records import Problem, Stdio

FENCE = "```python\n"
"""What the assistant's turn is opened with: the program follows."""

FENCE_STOPS = ("\n```",)
FUNCTION_STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\nimport ", "\nfrom ")
"""Ends of a function that is continued without a chat template (usual for HumanEval). Known limitation: a
solution that puts a helper function or a second import at the top level is cut there."""
PROGRAM_STOPS = ('\n"""', "\n```")
CALLED_STOPS = (*PROGRAM_STOPS, "\nassert ", "\nprint(")

_CUT = "\x02restrl\x03"  # stands for the assistant's words in a template that has no generation prompt


class ChatTokenizer(Protocol):
    """What PromptFormat needs of a tokenizer."""

    chat_template: Any
    eos_token: Any

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...


class PromptFormat:
    """Prompts for one tokenizer; None stands for a tokenizer without chat template."""

    def __init__(self, tokenizer: ChatTokenizer | None = None) -> None:
        self._tokenizer = tokenizer if tokenizer is not None and tokenizer.chat_template else None
        self._headers: dict[tuple[str, str], str] = {}

    @property
    def chat(self) -> bool:
        """Whether problems are put as chat turns."""
        return self._tokenizer is not None

    def header(self, problem: Problem) -> str:
        """The text before every state of the problem; "" for code that is continued as it stands."""
        if self._tokenizer is None:
            return "" if problem.mode == "complete" else _docstring(instruction(problem))
        key = (problem.task_id, problem.prompt)
        if key not in self._headers:
            self._headers[key] = _opened_turn(self._tokenizer, instruction(problem)) + FENCE
        return self._headers[key]

    def stops(self, problem: Problem) -> tuple[str, ...]:
        """The strings that end a program; () where only the end-of-sequence token does (pipelines)."""
        if self.chat:
            return FENCE_STOPS
        if problem.source == "pipelines":
            return ()
        if problem.mode == "complete":
            return FUNCTION_STOPS
        return PROGRAM_STOPS if isinstance(problem.tests, Stdio) else CALLED_STOPS

    def prompt(self, problem: Problem, state: str, key: str) -> Prompt:
        """The request that continues `state` (problem.prefix + whole lines); `key` seeds its samples."""
        header = self.header(problem)
        return Prompt(header=header, state=state, key=key, answer_from=len(header) + len(problem.prefix))


def find_stop(text: str, stops: tuple[str, ...], state: str = "") -> tuple[int, int] | None:
    """(start, end) of the first stop string in `text`, or None. Of two that begin together, the longer one.

    A stop string may begin in the state's last characters (a line end there, "```" here; its start is then
    0), but one that ends in the state does not count. The first is the one that begins first.
    """
    width = max((len(stop) for stop in stops), default=1) - 1
    tail = state[-width:] if width else ""
    whole = tail + text
    starts = [(whole.find(stop, max(0, len(tail) - len(stop) + 1)), -len(stop)) for stop in stops]
    found = [place for place in starts if place[0] >= 0]
    if not found:
        return None
    start, length = min(found)
    return max(0, start - len(tail)), start - length - len(tail)


def cut_at_stop(text: str, stops: tuple[str, ...], state: str = "") -> tuple[str, bool]:
    """(`text` up to its first stop string, whether there was one); see `find_stop`."""
    found = find_stop(text, stops, state)
    return (text, False) if found is None else (text[: found[0]], True)


def value_text(problem: Problem, answer: str) -> tuple[str, int]:
    """(input text of the scalar value model, the character at which the answer begins in it).

    The text is the published value model's format.
    """
    before = f"\n<prompt>\n{problem.prompt}\n<answer>\n"
    return f"{before}{answer}\n", len(before)


def instruction(problem: Problem) -> str:
    """The problem in words: its prompt, and what its tests expect where the prompt does not say so."""
    if problem.mode == "complete":
        code = problem.prompt.rstrip()
        return f"Complete this Python program. Answer with the whole program.\n\n{FENCE}{code}\n```"
    parts = [problem.prompt.strip()]
    if problem.entry_point and problem.entry_point not in problem.prompt:
        parts.append(f"The function is called `{problem.entry_point}`.")
    if isinstance(problem.tests, Stdio):
        parts.append("Read from standard input and write to standard output.")
    return "\n\n".join(parts)


def _docstring(instruction: str) -> str:
    quoted = instruction.replace("\\", "\\\\").replace('"""', "'''")
    return f'"""\n{quoted}\n"""\n'


def _opened_turn(tokenizer: ChatTokenizer, instruction: str) -> str:
    """The chat up to where the assistant's first word stands.

    Templates without a generation prompt render the assistant's turn only around its words: a mark stands for
    them, and the text is cut there, before what closes the turn.
    """

    def render(messages: list[dict[str, str]], opened: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opened, enable_thinking=False
            )
        )

    user = {"role": "user", "content": instruction}
    opened = render([user], True)
    if opened != render([user], False):
        return opened
    return render([user, {"role": "assistant", "content": _CUT}], False).split(_CUT)[0]
