"""Which stage an inspection is for, and its settings as that stage's script reads them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import details_hidden
from hf_recipes.core.settings import NonNegativeInt, Parser, check_limits, setting
from hf_recipes.data.arguments import DataArguments
from hf_recipes.data.examples import schema_of
from hf_recipes.data.files.sources import find_sources
from hf_recipes.data.pretraining.corpora import SHARDS, named_paths
from hf_recipes.data.schemas.registry import Columns
from hf_recipes.evaluation.registry import EvaluationArguments
from hf_recipes.run.arguments import RunArguments
from hf_recipes.run.data import columns_of
from hf_recipes.stages.base import Context
from hf_recipes.stages.table import STAGES

# What of a run's settings is about the machine that it is for, or what it leaves behind: for looking, these do.
LOOKING = {
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


@dataclass
class InspectArguments:
    """What to look at."""

    stage: Literal[tuple(STAGES)] | None = setting(
        "What is going to be trained; guessed from the settings and the rows by default."
    )
    html: str | None = setting("Also write the report as a page, to this file.")
    examples: NonNegativeInt = setting("Rows to draw token by token; on the page ten times as many.", 5)
    show: list[str] | None = setting("Draw these rows instead, as file:line.")
    privacy: bool = setting("Mask personal data in the texts that are shown.", False)

    def __post_init__(self):
        check_limits(self)
        folder = os.path.dirname(self.html or "") or "."
        if not os.path.isdir(folder):
            raise ValueError(f"--html {self.html}: there is no folder {folder}")
        if self.html and os.path.isdir(self.html):
            raise ValueError(f"--html {self.html}: this is a folder; name a file in it")


@dataclass
class Settings(Context):
    """The settings of a stage, which was chosen for a `reason`."""

    reason: str = ""
    look: InspectArguments = field(default_factory=InspectArguments)


def read_settings(argv: Sequence[str]) -> Settings:
    """The settings of a command line, for the stage that it names, or else the likeliest.

    Raises:
        UserError: settings that no stage knows or that contradict each other, or rows that fit no stage.
    """
    names = Parser.names(argv)
    known = {name: {f.name for kind in _kinds(name) for f in fields(kind)} for name in STAGES}
    fitting = [name for name in STAGES if names <= known[name]]
    if not fitting:  # parsed all the same, so that the setting that is not known is named
        fitting = sorted(STAGES, key=lambda name: len(names - known[name]))[:1]
    parsed = _parse_first(fitting, argv)
    if parsed.look.stage:
        return _parse(parsed.look.stage, argv, "named by --stage")
    if len(fitting) == 1:
        telling = sorted(names - set.intersection(*known.values()))
        own = [name for name in telling if sum(name in found for found in known.values()) == 1]
        return _parse(fitting[0], argv, f"guessed from {', '.join(own or telling)}; --stage names another")
    with details_hidden(parsed.look.privacy):
        stage, schema = _guess(parsed, fitting)
    return _parse(stage, argv, f"guessed from the rows, whose schema is {schema}; --stage names another")


def _kinds(stage: str) -> list[type]:
    found = STAGES[stage]
    return [found.model, found.data, _looking(found.arguments), EvaluationArguments, InspectArguments]


def _parse(stage: str, argv: Sequence[str], reason: str = "") -> Settings:
    *settings, look = Parser(_kinds(stage)).parse(argv)
    return Settings(STAGES[stage], *settings, reason=reason, look=look)


def _parse_first(stages: Sequence[str], argv: Sequence[str]) -> Settings:
    """The settings of the first stage that can have them."""
    problem = None
    for stage in stages:
        try:
            return _parse(stage, argv)
        except UserError as error:
            problem = problem or error
    raise problem


def _guess(settings: Settings, fitting: Sequence[str]) -> tuple[str, str]:
    """The stage among `fitting` that learns from rows such as the first ones, and the name of their schema."""
    data = settings.data_args
    _, path = next(named_paths(data.train_file[0]))
    if os.path.isfile(os.path.join(path, SHARDS)):
        return _among(("pretrain",), fitting, path, "token shards"), "token shards"
    columns = Columns(schema=data.schema, prompt=data.prompt_column)
    if isinstance(data, DataArguments):
        columns = columns_of(data)
    source, problem = find_sources([path], cache_dir=data.cache_dir, sniff=True)[0], None
    for reads, stages in (("examples", None), ("documents", ("pretrain",)), ("prompts", ("grpo",))):
        try:
            schema = schema_of(source, replace(columns, reads=reads))
        except UserError as error:
            problem = problem or error
            continue
        return _among(stages or _learn_from(schema.form), fitting, path, f"schema {schema.name}"), schema.name
    raise problem


def _learn_from(form: str) -> list[str]:
    """The stages that learn from rows of a form, those that are for it first."""
    found = [stage for stage in STAGES.values() if form in stage.forms]
    return [stage.name for stage in sorted(found, key=lambda stage: stage.forms[0] != form)]


def _among(stages: Sequence[str], fitting: Sequence[str], path: str, what: str) -> str:
    stage = next((stage for stage in stages if stage in fitting), None)
    if stage is None:
        raise UserError(
            f"{path}: {what}, for {' or '.join(stages)}, but the settings are of {' or '.join(fitting)}; name the "
            "stage with --stage"
        )
    return stage


def _looking(kind: type[RunArguments]) -> type[RunArguments]:
    """`kind` for looking at data on any machine."""

    def __post_init__(self):
        for name in LOOKING.keys() & {f.name for f in fields(kind)}:
            setattr(self, name, LOOKING[name])
        if hasattr(self, "num_generations"):  # so that any number of processes writes whole groups
            self.per_device_train_batch_size, self.gradient_accumulation_steps = self.num_generations, 1
            self.steps_per_generation = self.generation_batch_size = None
        kind.__post_init__(self)

    return dataclass(type(kind.__name__, (kind,), {"__post_init__": __post_init__, "__module__": kind.__module__}))
