"""Publish a run's result or a checkpoint: weights, tokenizer, model card, settings, ledger summary, metrics and curves.

python scripts/push.py --folder runs/mine --hub_model_id me/mine
python scripts/push.py --folder runs/mine/checkpoint-100 --hub_model_id me/mine --target modelscope
"""

from dataclasses import dataclass
from pathlib import Path

from hf_recipes import hub
from hf_recipes.errors import UserError, say
from hf_recipes.parsing import Parser, run_script
from hf_recipes.training.publishing import REPLACED, staged


@dataclass
class Arguments:
    folder: str
    hub_model_id: str
    target: hub.Target = "hf"
    private: bool = True
    revision: str | None = None
    hub_token: str | None = None

    def __post_init__(self):
        hub.check_destination(self.hub_model_id, self.target)


def main() -> None:
    [arguments] = Parser([Arguments]).parse()
    run, repo, target = Path(arguments.folder), arguments.hub_model_id, arguments.target
    if not run.is_dir():
        raise UserError(f"--folder {run}: no such folder")
    hub.keep_token(arguments.hub_token, target)
    with staged(run, repo) as folder:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            say(f"  {path.relative_to(folder)}  {hub.size_text(path.stat().st_size)}")
        say(f"pushing {len(files)} files to {hub.NAMES[target]}, {'private' if arguments.private else 'public'}")
        try:
            url = hub.ensure_repository(repo, target, private=arguments.private)
            message = "Upload with hf_recipes"
            hub.upload(folder, repo, target, replaces=REPLACED, revision=arguments.revision, message=message)
        except hub.client_errors(target) as error:
            raise UserError(hub.explain(error, repo, target)) from None
    say(f"pushed: {url}")


if __name__ == "__main__":
    run_script(main, "the same command pushes it anew")
