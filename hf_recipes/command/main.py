"""``hf-recipes COMMAND …``: mistakes of the command line are found before a library of a run is imported."""

import os
import runpy
import sys
from collections.abc import Callable, Sequence

from hf_recipes import __version__
from hf_recipes.command.script import check_command_line
from hf_recipes.core.arguments.command_line import nearest
from hf_recipes.core.arguments.commands import COMMANDS, OTHER_NAMES, recipes
from hf_recipes.core.errors import UserError
from hf_recipes.core.script import errors_in_one_line, print_any_text

TRAINING = ("pretrain", "sft", "reward", "dpo", "orpo", "kto", "grpo")
# Of torchrun, deepspeed and accelerate; of mpirun; of srun.
LAUNCHED = ("RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_STEP_ID")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that `argv` names."""
    argv = sys.argv[1:] if argv is None else list(argv)
    print_any_text()
    with errors_in_one_line():
        if "_ARGCOMPLETE" in os.environ:
            from hf_recipes.command.completion import complete

            complete(OTHERS)
        name, *rest = argv or ["--help"]
        name = OTHER_NAMES.get(name, name)
        if name in ("-h", "--help", "help"):
            print(overview())
        elif name == "--version":
            print(__version__)
        elif name in OTHERS:
            run_other(name, rest)
        elif name in COMMANDS:
            run(name, rest)
        else:
            raise UserError(
                f"unknown command {name}{nearest(name, (*COMMANDS, *OTHERS))}; hf-recipes --help lists them"
            )


def run(name: str, argv: list[str]) -> None:
    """Run a script, after a look at its command line; a training on every GPU that is visible."""
    if argv and not argv[0].startswith("-") and (argv[0].endswith((".yaml", ".yml")) or argv[0] in recipes()):
        argv = ["--config", *argv]
    processes = take_processes(argv) if name in TRAINING else None
    check_command_line(name, argv, f"hf-recipes {name}")
    script = str(COMMANDS[name].script_for(argv))
    if name in TRAINING and not any(variable in os.environ for variable in LAUNCHED):
        count = processes or _visible_gpus()
        if count > 1:
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
            sys.stdout.flush()
            os.execv(sys.executable, [*launcher, script, *argv])
    sys.argv = [script, *argv]
    runpy.run_path(script, run_name="__main__")


def run_other(name: str, argv: list[str]) -> None:
    """Run a command that is no script: it has no flags, and takes what its usage names."""
    do, usage, sentence = OTHERS[name]
    line = f"hf-recipes {name} {usage}".strip()
    if {"-h", "--help", "--help_all", "--help-all"} & set(argv):
        print(f"{sentence}\n\n  {line}")
    elif argv[0:1] and argv[0].startswith("-"):
        raise UserError(f"unknown flag {argv[0]}; the command is {line}")
    elif len(argv) > bool(usage):
        raise UserError(f"stray argument {argv[-1]!r}; the command is {line}")
    elif not argv and usage and not usage.startswith("["):
        raise UserError(f"{usage} is missing; the command is {line}")
    else:
        do(*argv)


def take_processes(argv: list[str]) -> int | None:
    """The value of --nproc_per_node, which goes out of `argv`."""
    for index, item in enumerate(argv):
        flag, _, value = item.partition("=")
        if flag in ("--nproc_per_node", "--nproc-per-node"):
            text = value or "".join(argv[index + 1 : index + 2])
            if not text.isdecimal() or int(text) < 1:
                raise UserError(f"{flag} {text}".rstrip() + ": expected a number of processes")
            del argv[index : index + (1 if value else 2)]
            return int(text)
    return None


def _visible_gpus() -> int:
    import torch

    return torch.accelerator.device_count()


def overview() -> str:
    """The commands, a line each."""
    sentences = {name: command.sentence for name, command in COMMANDS.items()}
    sentences |= {name: sentence for name, (_, _, sentence) in OTHERS.items()}
    width = max(map(len, sentences))
    lines = [f"  {name:{width}}  {sentence}" for name, sentence in sentences.items()]
    gpus = "A training runs on every GPU that is visible, or in as many processes as --nproc_per_node says."
    return "\n".join(["hf-recipes COMMAND --help, for one of", "", *lines, "", gpus])


def _recipes(name: str | None = None) -> None:
    from hf_recipes.command.recipes import print_recipe, print_recipes

    print_recipe(name) if name else print_recipes()


def _env() -> None:
    from hf_recipes.command.environment import environment

    print(environment())


def _import_config(path: str) -> None:
    from hf_recipes.command.import_config import import_config

    print(import_config(path), end="")


# Commands that are no scripts: what they take, and what they do.
OTHERS: dict[str, tuple[Callable[..., None], str, str]] = {
    "recipes": (_recipes, "[NAME]", "List the recipes that come with the package, or print one."),
    "env": (_env, "", "Versions and devices."),
    "import-config": (_import_config, "FILE.yaml", "Print the settings of a training by LLaMA-Factory as ours."),
}
