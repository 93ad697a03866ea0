"""Which stage an inspection is for, and the settings that this stage's script would read."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from hf_recipes.core.arguments.limits import NonNegativeInt, check_limits
from hf_recipes.core.arguments.settings import Parser, setting
from hf_recipes.core.errors import UserError
from hf_recipes.core.language import Language, locale_language
from hf_recipes.core.ledger import details_hidden
from hf_recipes.data.arguments import DataArguments, columns_of
from hf_recipes.data.examples import schema_of
from hf_recipes.data.files.sources import find_sources
from hf_recipes.data.pretraining.corpora import SHARDS, named_paths
from hf_recipes.data.schemas.registry import Columns
from hf_recipes.evaluation.registry import EvaluationArguments
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.run.arguments import RunArguments
from hf_recipes.stages.base import Context
from hf_recipes.stages.table import STAGES

# Settings of a run's machine and of its results, which an inspection replaces by these.
REPLACED = {
    "output_dir": "inspection",
    "bf16": False,
    "fp16": False,
    "tf32": None,
    "deepspeed": None,
    "fsdp": None,
    "use_vllm": False,
    "report_to": "none",
    "push_to_hub": False,
    "hub_model_id": None,
    "hub_token": None,
    "resume_from_checkpoint": None,
    "overwrite_output_dir": False,
}

GUESSED = "guessed from {clue}; --stage names another"


@dataclass
class InspectArguments:
    """What the report holds."""

    stage: Literal[tuple(STAGES)] | None = setting(
        "What is going to be trained; guessed from the settings and the rows by default."
    )
    html: str | None = setting("Also write the report as a page, to this file.")
    language: Language | None = setting("Language of the page; by default the locale's.")
    examples: NonNegativeInt = setting("Rows to show token by token; on the page ten times as many.", 5)
    show: list[str] | None = setting("Show these rows instead, as file:line.")
    privacy: bool = setting("Mask personal data in the texts of the report.", False)

    def __post_init__(self):
        check_limits(self)
        self.language = self.language or locale_language()
        folder = os.path.dirname(self.html or "") or "."
        if not os.path.isdir(folder):
            raise ValueError(f"--html {self.html}: there is no folder {folder}")
        if self.html and os.path.isdir(self.html):
            raise ValueError(f"--html {self.html}: this is a folder; name a file in it")


@dataclass
class InspectContext(Context):
    """A run that is inspected; `reason` says why it is of its stage."""

    reason: str = ""
    inspection: InspectArguments = field(default_factory=InspectArguments)


def read_settings(argv: Sequence[str]) -> InspectContext:
    """The settings of a command line, for the stage that it names, or else the likeliest.

    Raises:
        UserError: settings that no stage knows or that contradict each other, or rows that fit no stage.
    """
    names = Parser.names(argv)
    known = {stage: {f.name for kind in _argument_classes(stage) for f in fields(kind)} for stage in STAGES}
    stages = [stage for stage in STAGES if names <= known[stage]]
    if not stages:  # the parser of the nearest one names the flag that it does not know
        stages = [min(STAGES, key=lambda stage: len(names - known[stage]))]
    parsed = _parse_first(stages, argv)
    if parsed.inspection.stage:
        return _parse(parsed.inspection.stage, argv, Phrase("named by --stage"))
    if len(stages) == 1:
        telling = sorted(names - set.intersection(*known.values()))
        unique = [name for name in telling if sum(name in of_stage for of_stage in known.values()) == 1]
        return _parse(stages[0], argv, Phrase(GUESSED, clue=", ".join(unique or telling)))
    with details_hidden(parsed.inspection.privacy):
        stage, schema = _guess(parsed, stages)
    return _parse(stage, argv, Phrase(GUESSED, clue=Phrase("the rows, whose schema is {schema}", schema=schema)))


def _argument_classes(name: str) -> list[type]:
    stage = STAGES[name]
    return [stage.model, stage.data, _for_any_machine(stage.arguments), EvaluationArguments, InspectArguments]


def _parse(stage: str, argv: Sequence[str], reason: str = "") -> InspectContext:
    *settings, inspection = Parser(_argument_classes(stage)).parse(argv)
    return InspectContext(STAGES[stage], *settings, reason=reason, inspection=inspection)


def _parse_first(stages: Sequence[str], argv: Sequence[str]) -> InspectContext:
    """The settings of the first stage that can have them."""
    problem = None
    for stage in stages:
        try:
            return _parse(stage, argv)
        except UserError as error:
            problem = problem or error
    raise problem


def _guess(settings: InspectContext, stages: Sequence[str]) -> tuple[str, str]:
    """The first of `stages` that trains on rows such as the first ones, and the name of their schema."""
    path, schema, fitting = _stages_of_rows(settings.data_args)
    stage = next((stage for stage in fitting if stage in stages), None)
    if stage is None:
        what = f"schema {schema}" if schema != "token shards" else schema
        raise UserError(
            f"{path}: {what}, for {' or '.join(fitting)}, but the settings are of {' or '.join(stages)}; name the "
            "stage with --stage"
        )
    return stage, schema


def _stages_of_rows(data) -> tuple[str, str, list[str]]:
    """The first path to train on, the name of the schema of its rows, and the stages that they are for."""
    _, path = next(named_paths(data.train_file[0]))
    if os.path.isfile(os.path.join(path, SHARDS)):
        return path, "token shards", _stages_made_for("text")
    columns = Columns(schema=data.schema, prompt=data.prompt_column, ignored=tuple(data.ignore_columns or ()))
    if isinstance(data, DataArguments):
        columns = columns_of(data)
    source, problem = find_sources([path], cache_dir=data.cache_dir, sniff=True, encoding=data.encoding)[0], None
    # Other shapes of documents, and prompts without an answer, are read by the stages that are made for them alone.
    for reads, form in (("examples", None), ("documents", "text"), ("prompts", "prompt")):
        try:
            schema = schema_of(source, replace(columns, reads=reads))
        except UserError as error:
            problem = problem or error
            continue
        return path, schema.name, _stages_made_for(form) if form else _stages_that_read(schema.form)
    raise problem


def _stages_made_for(form: str) -> list[str]:
    return [stage.name for stage in STAGES.values() if stage.data_form == form]


def _stages_that_read(form: str) -> list[str]:
    """The stages that are made for a form, and after them the others that can read it."""
    return list(
        dict.fromkeys([*_stages_made_for(form), *(stage.name for stage in STAGES.values() if form in stage.forms)])
    )


def _for_any_machine(kind: type[RunArguments]) -> type[RunArguments]:
    """`kind`, which is valid on the machine that inspects."""

    def __post_init__(self):
        for name in REPLACED.keys() & {f.name for f in fields(kind)}:
            setattr(self, name, REPLACED[name])
        if hasattr(self, "num_generations"):  # so that any number of processes generates whole groups
            self.per_device_train_batch_size, self.gradient_accumulation_steps = self.num_generations, 1
            self.steps_per_generation = self.generation_batch_size = None
        kind.__post_init__(self)

    return dataclass(type(kind.__name__, (kind,), {"__post_init__": __post_init__, "__module__": kind.__module__}))
