"""Named methods on named files, checked before any model is loaded."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.arguments.limits import NonNegativeInt, check_limits
from hf_recipes.core.arguments.settings import setting
from hf_recipes.core.errors import UserError, say
from hf_recipes.data.examples import fitting_columns, schema_of
from hf_recipes.data.files.records import read_records
from hf_recipes.data.files.sources import find_sources
from hf_recipes.data.schemas.columns import Columns
from hf_recipes.evaluation.method import EvalContext, Method
from hf_recipes.evaluation.methods.generation import GenerationMethod
from hf_recipes.evaluation.methods.multiple_choice import SingleChoice
from hf_recipes.evaluation.methods.perplexity import NLL
from hf_recipes.evaluation.methods.preference_accuracy import PairAccuracy
from hf_recipes.evaluation.methods.questions import read_question
from hf_recipes.evaluation.run_record import BEFORE, EvaluatedRows, RunRecord
from hf_recipes.rewards.settings import RewardArguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_recipes.models.inference.decoding import Decoding
    from hf_recipes.rewards.weighted_sum import Rewards

METHODS: tuple[type[Method], ...] = (GenerationMethod, SingleChoice, NLL, PairAccuracy)
NAMES = list(dict.fromkeys(name for method in METHODS for names in method.forms.values() for name in names))

FORMS = list(dict.fromkeys(form for method in METHODS for form in method.forms))


def methods_for(form: str) -> dict[str, type[Method]]:
    """The methods that fit rows of a form, by their names for --eval_methods; the first is the default.

    A method comes the earlier, the earlier this form is among its forms.
    """
    fitting = [method for method in METHODS if form in method.forms]
    fitting.sort(key=lambda method: list(method.forms).index(form))
    return {name: method for method in fitting for name in method.forms[form]}


@dataclass
class EvaluationArguments(RewardArguments):
    """What a model is evaluated on, by which methods, and with which rewards."""

    eval_methods: list[str] | None = setting(f"{', '.join(NAMES)}; each is used on the files that it fits.")
    eval_files: list[str] | None = setting(
        "name=path of files to evaluate on; the name is that of their metrics. evaluate takes what a run held out by "
        "default."
    )
    few_shot_file: str | None = setting("Examples to put before each choice question.")
    few_shot: NonNegativeInt = setting("How many of them.", 5)
    nll_prefix_token: str | None = setting(
        "bos, eos or a token to put before each text that nll scores, so that its first token counts too, as in "
        "lm-eval; by default what the tokenizer puts there, and without that the first token is left out."
    )

    def __post_init__(self):
        super().__post_init__()
        check_limits(self)
        for name in self.eval_methods or ():
            if name not in NAMES:
                raise ValueError(f"--eval_methods {name}: no such method{nearest(name, NAMES)}")
        self.named_files()

    def named_files(self) -> dict[str, str]:
        """The paths of `eval_files` by name."""
        files: dict[str, str] = {}
        for entry in self.eval_files or ():
            name, sign, path = entry.partition("=")
            if not sign or not path or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"--eval_files {entry}: expected name=path, the name in letters and digits")
            if name in files:
                raise ValueError(f"--eval_files {entry}: the name {name} is given twice")
            files[name] = path
        return files


def is_choice(path: str, encoding: str | None = None) -> bool:
    """Whether the rows of a file are single-choice questions."""
    source = find_sources([path], "test", encoding=encoding)[0]
    first = next((r for r in islice(read_records(source), 100) if r.value is not None), None)
    if first is None or not {name.lower() for name in first.value} >= {"question", "answer"}:
        return False
    try:
        read_question({**first.value, "location": first.location})
        return True
    except UserError as error:
        letter = str(first.value.get("answer", first.value.get("Answer", ""))).strip()
        if len(letter) == 1 and letter.isalpha() and letter.isascii():  # meant as one
            raise error from None
        return False


def form_of(path: str, rows: EvaluatedRows | None = None) -> str:
    """What the rows of a file are: choice, content, or the form of their schema.

    Raises:
        UserError: the file cannot be read, or its shape is not known.
    """
    rows = rows or EvaluatedRows()
    if is_choice(path, rows.encoding):
        return "choice"
    source = find_sources([path], "test", encoding=rows.encoding)[0]
    schema = schema_of(source, replace(rows.columns, reads="prompts", thoughts=None))
    return "content" if schema.form == "text" and schema.columns.prompt == "content" else schema.form


def as_in_run(record: RunRecord, arguments: EvaluationArguments, rows: EvaluatedRows) -> EvaluationArguments:
    """`arguments` with what the run put before the rows of these files; few-shot examples, the first token."""
    forms = set()
    for path in arguments.named_files().values():
        with suppress(UserError):  # which `build_methods` raises
            forms.add(form_of(path, rows))
    if NLL.name not in (arguments.eval_methods or [NLL.name]):
        forms.discard("text")
    record.given |= {name for name, form in BEFORE.items() if form not in forms}
    return record.apply(arguments)[0]


def rows_in(path: str, context: EvalContext) -> EvaluatedRows:
    """How the rows of a file are read: where it may lack columns, without these; see `fitting_columns`."""
    rows = context.rows
    if not context.may_lack or is_choice(path, rows.encoding):
        return rows
    source = find_sources([path], "test", encoding=rows.encoding)[0]
    columns = fitting_columns(source, replace(rows.columns, reads="prompts", thoughts=None))
    thoughts = fitting_columns(source, Columns(thoughts=rows.columns.thoughts)).thoughts
    named = {f"{name}_column": getattr(columns, name) for name in ("prompt", "response", "history")}
    return replace(rows, schema=columns.schema, thoughts_column=thoughts, **named)


def check_scored(rewards: "Rewards | None", methods: Iterable[Method]) -> None:
    """Refuse rewards where none of `methods` writes answers."""
    if rewards and not any(isinstance(method, GenerationMethod) for method in methods):
        raise UserError("--rewards and --reward_model without answers to score: give --eval_files with prompts")


def build_methods(
    arguments: EvaluationArguments,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    decoding: "Decoding",
    served: Sequence[str] = (),
    **settings: Any,
) -> dict[str, Method]:
    """The evaluations of `arguments.eval_files`, by the file's name, with the method's suffix where it has several.

    A file that no method fits is a UserError, and so is a method that fits no file.

    Args:
        served: methods that have other rows to work on, and need no file.
        settings: what else `EvalContext` takes.
    """
    made_with = EvalContext(arguments, tokenizer, decoding, **settings)
    files, requested = arguments.named_files(), arguments.eval_methods
    rows = {name: rows_in(path, made_with) for name, path in files.items()}
    forms = {name: form_of(path, rows[name]) for name, path in files.items()}
    used: dict[str, dict[type[Method], list[str]]] = {}
    for name, form in forms.items():
        fitting = methods_for(form)
        names = [method for method in fitting if method in requested] if requested else list(fitting)[:1]
        if not names:
            raise UserError(
                f"--eval_files {name}={files[name]}: its rows are of the form {form}, for "
                f"{', '.join(fitting)}; add one of these to --eval_methods"
            )
        used[name] = {method: [n for n in names if fitting[n] is method] for method in map(fitting.get, names)}
    served = {*served, *(n for methods in used.values() for names in methods.values() for n in names)}
    for method in (requested or ()) if files else ():
        if method not in served:
            kinds = " or ".join(form for form in FORMS if method in methods_for(form))
            raise UserError(f"--eval_methods {method}: none of --eval_files has rows of the form {kinds}")
    if arguments.few_shot_file and "choice" not in forms.values():
        raise UserError("--few_shot_file is put before choice questions, of which --eval_files has none")
    evaluations: dict[str, Method] = {}
    for name, methods in used.items():
        for kind, names in methods.items():
            context = replace(made_with, rows=rows[name])
            method = kind.from_file(files[name], forms[name], names if requested else None, context)
            key = name if len(methods) == 1 else f"{name}_{method.suffix}"
            evaluations[key] = method
            say(f"{key}: {', '.join(getattr(method, 'scores', names))} on {len(method):,} items")
            if method.note:
                say(f"{key}: {method.note}")
    if arguments.nll_prefix_token and not any(method.note for method in evaluations.values()):
        raise UserError("--nll_prefix_token is put before texts that nll scores, of which --eval_files has none")
    return evaluations
