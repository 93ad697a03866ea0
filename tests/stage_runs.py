"""What a run makes of its settings, without its folder: its rows, and its trainer."""

from hf_recipes.evaluation.registry import EvaluationArguments
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.stages.base import Context, Data, Stage


def context_of(stage: Stage, args, data, tokenizer, model="M", **evaluation) -> Context:
    """A run's context with this model, which is not read; `data` and `model` are arguments or a path."""
    data = stage.data(train_file=[str(data)]) if not isinstance(data, stage.data) else data
    model = stage.model(str(model)) if not isinstance(model, ModelArguments) else model
    return Context(stage, model, data, args, EvaluationArguments(**evaluation), tokenizer)


def rows_of(stage: Stage, args, data, tokenizer) -> Data:
    return stage.read(context_of(stage, args, data, tokenizer))


def trainer_of(stage: Stage, args, data, tokenizer, model, **reference):
    """The trainer of `model` on the rows of `data`, and these."""
    context = context_of(stage, args, data, tokenizer)
    rows = stage.read(context)
    return stage.trainer(context, rows, model, {}, **reference), rows
