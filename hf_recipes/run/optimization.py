"""The optimizer and the learning rate's schedule: what cannot be made of the settings is found on a tiny weight."""

import inspect
import json
from copy import copy
from typing import TYPE_CHECKING

from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from hf_recipes.run.arguments import RunArguments

TOTAL = 1000  # steps of the schedule that is tried
# Their optimizers are made of the model's modules.
_OF_MODULES = ("galore", "apollo", "lomo")
_WITHOUT_SETTINGS = ("constant", "constant_with_warmup")


def check_optimization(args: "RunArguments") -> None:
    """Refuse an optimizer that is not installed or has other settings, and a schedule with wrong ones."""
    import torch

    plugin = getattr(args, "deepspeed_plugin", None)
    config = plugin.deepspeed_config if plugin else {}
    if "optimizer" not in config:
        _check_optimizer(args, torch.zeros(2, 2, requires_grad=True))
    if "scheduler" not in config:
        _check_schedule(args)


def schedule(args: "RunArguments", total: int) -> "torch.optim.lr_scheduler.LRScheduler":
    """The schedule of a run of `total` steps, as a factor of the learning rate."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    settings = {**decay_settings(args, total), **(args.lr_scheduler_kwargs or {})}
    return get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(total), total, settings)


def check_length(args: "RunArguments", total: int) -> None:
    """Refuse a decay that would have begun before the run of `total` steps does."""
    decay, warmup = (args.lr_scheduler_kwargs or {}).get("num_decay_steps"), args.get_warmup_steps(total)
    if decay and warmup + decay > total:
        raise UserError(
            f"--lr_scheduler_kwargs: num_decay_steps {decay} and {warmup} steps of warm-up are more than the run's "
            f"{total:,} steps; give fewer"
        )


def decay_settings(args: "RunArguments", total: int) -> dict[str, int]:
    """What pretraining's --decay_ratio makes of the schedule's settings for `total` steps."""
    is_decay = _name(args) == "warmup_stable_decay"
    return {"num_decay_steps": round(args.decay_ratio * total)} if is_decay and hasattr(args, "decay_ratio") else {}


def _name(args: "RunArguments") -> str:
    return getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)


def _check_optimizer(args: "RunArguments", weight: "torch.Tensor") -> None:
    from transformers import Trainer

    name = getattr(args.optim, "value", args.optim)
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        if not name.startswith(_OF_MODULES):
            kind([weight], **settings)
    except ImportError as error:
        raise UserError(f"--optim {name}: not installed ({_line(error)})") from None
    except Exception as error:  # whatever an optimizer makes of its settings
        if name.startswith(_OF_MODULES) and not isinstance(error, TypeError | KeyError):
            return  # it asks for the model, which is not read yet
        flag = f" with --optim_args {args.optim_args}" if args.optim_args else ""
        raise UserError(f"--optim {name}{flag}: {_line(error)}") from None
    for key in (pair.partition("=")[0].strip() for pair in (args.optim_args or "").split(",")):
        if key and not _is_read(key, args):
            raise UserError(f"--optim_args: {key!r} is no setting of --optim {name}; leave it out")


def _is_read(key: str, args: "RunArguments") -> bool:
    """Whether a setting of the optimizer does anything: transformers ignores unknown ones."""
    from transformers import Trainer

    tried, made = copy(args), set()
    for value in ("", "x", "true"):  # of which every number, truth value and name differs, or is refused
        tried.optim_args = f"{key}={value}"
        try:
            made.add(repr(Trainer.get_optimizer_cls_and_kwargs(tried)))
        except Exception:
            return True
    return len(made) > 1


def _check_schedule(args: "RunArguments") -> None:
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    name, given = _name(args), args.lr_scheduler_kwargs or {}
    what = f"--lr_scheduler_type {name}"
    if given and name in _WITHOUT_SETTINGS:
        raise UserError(f"--lr_scheduler_kwargs has no effect with {what}, which has none; leave it out")
    common = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
    parameters = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[args.lr_scheduler_type]).parameters
    keys = {key: parameter for key, parameter in parameters.items() if key not in common}
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in keys.values())
    if not is_open and (unknown := sorted(given.keys() - keys.keys())):
        known = f"; it has {', '.join(keys)}" if keys else ""
        raise UserError(
            f"--lr_scheduler_kwargs: {unknown[0]!r} is no setting of {what}{nearest(unknown[0], keys)}{known}"
        )
    required = {key for key, parameter in keys.items() if parameter.default is parameter.empty}
    missing = sorted(required - given.keys() - decay_settings(args, TOTAL).keys()) if not is_open else []
    if missing:
        example = json.dumps(dict.fromkeys(missing, 100))
        raise UserError(f"{what} needs {', '.join(missing)}: give --lr_scheduler_kwargs '{example}', for instance")
    try:
        for factor in getattr(schedule(args, TOTAL), "lr_lambdas", ()):
            for step in (0, TOTAL // 2, TOTAL):
                float(factor(step))
    except Exception as error:  # whatever a schedule makes of its settings
        raise UserError(f"{what}: {_line(error)} (--lr_scheduler_kwargs {json.dumps(given)})") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
