"""A user's Python function as a reward."""

import importlib.util
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.prompts import Prompt
from hf_recipes.rewards.interface import Reward


def user_function(file: str, name: str, columns: Collection[str]) -> Reward:
    """The function `name` of a Python file, called as TRL calls reward functions.

    It gets, with one item for each answer: `prompts` (lists of messages, or texts), `completions` (texts, without
    thoughts), `reasoning_content` (the thoughts), `reference`, `location` (`file:line`), and all other `columns` of the
    rows (None where a row does not have it).
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"--rewards {file}: no such file")
    module_spec = importlib.util.spec_from_file_location(f"rewards_of_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        line = _line_in(error, path)
        raise UserError(f"--rewards {path}{line}: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"--rewards {file}: no function {name} in it; name one as {file}:name")

    def call(prompts: Sequence[Prompt], answers: Sequence[str], thoughts: Sequence[str]) -> list[float | None]:
        given = {column: [(prompt.row or {}).get(column) for prompt in prompts] for column in sorted(columns)}
        given["prompts"] = [prompt.messages if prompt.is_chat else prompt.question for prompt in prompts]
        given |= {"completions": list(answers), "reasoning_content": list(thoughts)}
        given |= {"reference": [p.reference for p in prompts], "location": [p.location for p in prompts]}
        values = function(**given)
        return list(values) if isinstance(values, Iterator) else values  # a generator fails where it is read

    return call


def _line_in(error: Exception, path: Path) -> str:
    """``:line`` of `path` where `error` came from."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    trace, line = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = f":{trace.tb_lineno}"
        trace = trace.tb_next
    return line
