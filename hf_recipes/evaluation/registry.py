"""Which files are evaluated in which ways: named methods on named files, checked before any model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from hf_recipes.core.errors import UserError, say
from hf_recipes.evaluation.method import Method
from hf_recipes.rewards.settings import RewardArguments
from hf_recipes.rewards.weighted_sum import Rewards

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_recipes.models.inference.decoding import Decoding

# What of generated answers each of these tells; one generation serves all that are asked for.
OF_ANSWERS = ("rouge", "accuracy", "generation", "promptcblue")
METHODS = (*OF_ANSWERS, "single_choice", "nll", "pair_accuracy")
# The methods that fit a file, by the form of its rows; where none are asked for, the first.
FITTING = {
    "choice": ("single_choice",),
    "preference": ("pair_accuracy", "rouge", "generation"),
    "unpaired": ("generation",),
    "messages": (*OF_ANSWERS, "nll"),
    "text": ("nll", "generation"),
    "content": ("generation",),
}


@dataclass
class EvaluationArguments(RewardArguments):
    """What a model is evaluated on, and how; with rewards, its answers are worth so much."""

    eval_methods: list[str] | None = field(
        default=None, metadata={"help": f"{', '.join(METHODS)}; each is used on the files that it fits."}
    )
    eval_files: list[str] | None = field(
        default=None, metadata={"help": "name=path of files to evaluate on; the name is that of their metrics."}
    )
    few_shot_file: str | None = field(default=None, metadata={"help": "Examples shown before each choice question."})
    few_shot: int = field(default=5, metadata={"help": "How many of them."})
    nll_prefix_token: str | None = field(
        default=None,
        metadata={
            "help": "bos, eos or a token to put before each text that nll scores, so that its first token counts too, "
            "as in lm-eval; by default what the tokenizer puts there, and without that the first token is left out."
        },
    )

    def __post_init__(self):
        from hf_recipes.core.settings import nearest

        super().__post_init__()
        for name in self.eval_methods or ():
            if name not in METHODS:
                raise ValueError(f"--eval_methods {name}: no such method{nearest(name, METHODS)}")
        if self.few_shot < 0:
            raise ValueError(f"--few_shot {self.few_shot}: expected at least 0")
        self.named_files()

    def named_files(self) -> dict[str, str]:
        """`eval_files` as path by name.

        Raises:
            ValueError: an entry without a name, or a name given twice.
        """
        found: dict[str, str] = {}
        for entry in self.eval_files or ():
            name, sign, path = entry.partition("=")
            if not sign or not path or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"--eval_files {entry}: expected name=path, the name in letters and digits")
            if name in found:
                raise ValueError(f"--eval_files {entry}: the name {name} is given twice")
            found[name] = path
        return found


def form_of(path: str) -> str:
    """A key of `FITTING`: what the rows of a file are.

    Raises:
        UserError: the file cannot be read, or its shape is not known.
    """
    from hf_recipes.data.chat.prompts import find_prompt_schema
    from hf_recipes.data.examples import find_plan
    from hf_recipes.data.files.records import read_records
    from hf_recipes.data.files.sources import find_sources
    from hf_recipes.data.schemas.registry import Columns
    from hf_recipes.evaluation.methods.questions import read_question

    source = find_sources([path], "test")[0]
    first = next((r for r in islice(read_records(source), 100) if r.value is not None), None)
    if first is not None and {name.lower() for name in first.value} >= {"question", "answer"}:
        try:
            read_question({**first.value, "place": first.place})
            return "choice"
        except UserError as error:
            letter = str(first.value.get("answer", first.value.get("Answer", ""))).strip()
            if len(letter) == 1 and letter.isalpha() and letter.isascii():  # meant as one
                raise error from None
    schema, columns = find_plan(source, Columns(), find_prompt_schema)
    return "content" if schema.form == "text" and columns.prompt else schema.form


def build_methods(
    arguments: EvaluationArguments,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    decoding: "Decoding",
    max_length: int | None = None,
    max_drop_ratio: float = 0.01,
    cache_dir: str | None = None,
    served: Sequence[str] = (),
    rewards: Rewards | None = None,
) -> dict[str, Method]:
    """The evaluations of `arguments.eval_files` by name: that of the file, with the method's where it has several.

    Args:
        max_length: tokens that the model was made for.
        served: methods that have other rows to work on, and need no file.
        rewards: what generated answers are worth, beside the methods' scores.

    Raises:
        UserError: a file that no method fits, a method that fits no file, or rows that a method cannot use.
    """
    files, asked = arguments.named_files(), arguments.eval_methods
    forms = {name: form_of(path) for name, path in files.items()}
    fitting = {
        name: [method for method in FITTING[form] if method in asked] if asked else FITTING[form][:1]
        for name, form in forms.items()
    }
    for name, methods in fitting.items():
        if not methods:
            raise UserError(
                f"--eval_files {name}={files[name]}: its rows are of the form {forms[name]}, for "
                f"{', '.join(FITTING[forms[name]])}; add one of these to --eval_methods"
            )
    for method in (asked or ()) if files else ():
        if method not in served and not any(method in methods for methods in fitting.values()):
            kinds = " or ".join(form for form, methods in FITTING.items() if method in methods)
            raise UserError(f"--eval_methods {method}: none of --eval_files has rows of the form {kinds}")
    if arguments.few_shot_file and "choice" not in forms.values():
        raise UserError("--few_shot_file is shown before choice questions, of which --eval_files has none")
    found: dict[str, Method] = {}
    for name, methods in fitting.items():
        answered = [method for method in methods if method in OF_ANSWERS]
        parts = ([answered] if answered else []) + [[method] for method in methods if method not in OF_ANSWERS]
        for part in parts:
            key = name if len(parts) == 1 else f"{name}_{'answers' if part is answered else part[0]}"
            options = {"max_length": max_length, "max_drop_ratio": max_drop_ratio, "cache_dir": cache_dir}
            options["rewards"] = rewards
            found[key] = _build(part, files[name], tokenizer, arguments, decoding, **options)
            say(f"{key}: {', '.join(getattr(found[key], 'scores', part))} on {len(found[key]):,} units")
            if note := getattr(found[key], "note", None):
                say(f"{key}: {note}")
    if arguments.nll_prefix_token and not any(getattr(method, "note", None) for method in found.values()):
        raise UserError("--nll_prefix_token is put before texts that nll scores, of which --eval_files has none")
    return found


def _build(
    methods: Sequence[str],
    path: str,
    tokenizer: "PreTrainedTokenizerBase",
    arguments: EvaluationArguments,
    decoding: "Decoding",
    *,
    max_length: int | None,
    max_drop_ratio: float,
    cache_dir: str | None,
    rewards: Rewards | None,
) -> Method:
    from hf_recipes.data.chat.prompts import PromptReader, read_prompts
    from hf_recipes.data.examples import load_examples
    from hf_recipes.evaluation.methods.generation import GenerationMethod
    from hf_recipes.evaluation.methods.multiple_choice import SingleChoice
    from hf_recipes.evaluation.methods.perplexity import NLL
    from hf_recipes.evaluation.methods.preference_accuracy import PairAccuracy
    from hf_recipes.evaluation.methods.questions import read_rows

    if methods[0] == "single_choice":
        shown = {"few_shot_file": arguments.few_shot_file, "few_shot": arguments.few_shot}
        return SingleChoice(read_rows([path]), tokenizer, **shown, max_length=max_length)
    if methods[0] in OF_ANSWERS:
        budget = max_length - decoding.max_new_tokens if max_length else None
        if budget is not None and budget < 1:
            raise UserError(f"--max_new_tokens {decoding.max_new_tokens}: the model's context is {max_length:,} tokens")
        reader = PromptReader([path], tokenizer, max_source_length=budget, cache_dir=cache_dir)
        prompts, _ = read_prompts(reader, max_drop_ratio)
        scores = methods if arguments.eval_methods else None
        if rewards:
            rewards.check(prompts)
        return GenerationMethod(prompts, tokenizer, decoding, reader.stop_ids, scores=scores, rewards=rewards)
    form = "preference" if methods[0] == "pair_accuracy" else "text" if form_of(path) == "text" else "messages"
    examples = load_examples([path], form=form, cache_dir=cache_dir, split="test")
    length = min(max_length or 2048, 2048) if form == "text" else max_length
    how = {"max_length": length, "max_drop_ratio": max_drop_ratio}
    if form == "preference":
        method = PairAccuracy(examples, tokenizer, **how)
    else:
        method = NLL(examples, tokenizer, prefix_token=arguments.nll_prefix_token, **how)
    say(method.ledger.table())
    return method
