"""Publish an adapter or a model: weights, tokenizer, model card, settings, ledger summary, metrics and curves.

python scripts/push.py --folder runs/mine --hub_model_id me/mine --dry_run
python scripts/push.py --folder runs/mine/checkpoint-100 --hub_model_id me/mine --target modelscope
"""

if __name__ == "__main__":
    from hf_recipes.command.script import begin_script

    begin_script()

from dataclasses import MISSING, dataclass
from pathlib import Path

from hf_recipes.core.arguments.settings import Parser, setting
from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import in_units
from hf_recipes.core.script import run_script
from hf_recipes.hub import clients as hub
from hf_recipes.hub.upload import ensure_repository, upload
from hf_recipes.publishing.collect_files import Address, base_without_name, upload_folder
from hf_recipes.publishing.push_callback import REPLACED


@dataclass
class Arguments:
    folder: str = setting("Folder of a run, a checkpoint or a merged model.", MISSING)
    hub_model_id: str = setting("Its name on the hub: owner/name.", MISSING)
    target: hub.Target = setting("Which hub.", "hf")
    private: bool = setting("Whether a new repository is private.", True)
    revision: str | None = setting("Branch to push to.")
    base_model_name: str | None = setting("The base's name on the hub, where the run was of a folder.")
    license: str | None = setting("Of the model card, such as apache-2.0.")
    dry_run: bool = setting("List what would be sent, and send nothing.", False)
    hub_token: str | None = setting(
        "Better in the variable HF_TOKEN or MODELSCOPE_API_TOKEN: others see command lines."
    )

    def __post_init__(self):
        hub.check_destination(self.hub_model_id, self.target)
        if self.base_model_name:
            hub.check_name(self.base_model_name, "--base_model_name")


def main() -> None:
    [arguments] = Parser([Arguments]).parse()
    source, repo, target = Path(arguments.folder), arguments.hub_model_id, arguments.target
    if not source.is_dir():
        raise UserError(f"--folder {source}: no such folder")
    hub.export_token(arguments.hub_token, target)
    with upload_folder(source, Address(repo, target, arguments.base_model_name, arguments.license)) as folder:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            say(f"  {path.relative_to(folder)}  {in_units(path.stat().st_size)}")
        if base := base_without_name(folder):
            say(f"others cannot fetch the base, {base}: --base_model_name OWNER/NAME says what it is called on the hub")
        total = in_units(sum(path.stat().st_size for path in files))
        how = "private" if arguments.private else "public"
        if arguments.dry_run:
            card = folder / "README.md"
            say(f"\n{card.read_text(encoding='utf-8')}" if card.is_file() else "no model card")
            say(f"nothing is sent; {len(files)} files, {total}, would go to {repo} on {hub.NAMES[target]}, {how}")
            return
        say(f"pushing {len(files)} files, {total}, to {hub.NAMES[target]}, {how}")
        try:
            url = ensure_repository(repo, target, private=arguments.private)
            message = "Upload with hf_recipes"
            upload(folder, repo, target, replaces=REPLACED, revision=arguments.revision, message=message)
        except hub.client_errors(target) as error:
            raise UserError(f"{hub.explain(error, repo, target)}; the same command resumes") from None
    say(f"pushed: {url}")


if __name__ == "__main__":
    run_script(main, "the same command resumes: files that are there are not sent again")
