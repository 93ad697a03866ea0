"""Uploads of folders to a repository of the Hub or of ModelScope."""

import re
from collections.abc import Collection
from glob import escape
from pathlib import Path

from hf_recipes.core.errors import say
from hf_recipes.hub.clients import Target, _without_password, hf_api, modelscope_api


def ensure_repository(repo: str, target: Target, *, private: bool) -> str:
    """Create the repository unless it exists, and return its address; a public one stays public."""
    if target == "modelscope":
        api = modelscope_api()
        if not api.repo_exists(repo, "model"):
            api.create_repo(repo, "model", visibility="private" if private else "public")
        return _without_password(f"{api._config.endpoint}/models/{repo}")
    api = hf_api()
    url = _without_password(str(api.create_repo(repo, private=private, exist_ok=True)))
    if private and api.model_info(repo).private is False:
        say(f"{url} is there already and public; it stays public")
    return url


def upload(
    folder: Path, repo: str, target: Target, *, replaces: Collection[str], revision: str | None, message: str
) -> None:
    """Commit every file of a folder to an existing repository, and delete the files there that they replace.

    Args:
        replaces: regular expressions of file names. Files that match one, or that are in a subfolder of this name, and
            that the folder does not have, are deleted.
    """
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    replaced = [*replaces, *(f"{re.escape(path.name)}/.*" for path in folder.iterdir() if path.is_dir())]

    def old_files(names: list[str]) -> list[str]:
        old = [name for name in names if name not in files and any(re.fullmatch(kind, name) for kind in replaced)]
        if old:
            say(f"deleting from {repo} what an earlier push left there: {', '.join(old)}")
        return old

    if target == "modelscope":
        api = modelscope_api()
        api.upload_folder(
            repo, "model", folder, revision=revision, commit_message=message, use_cache=False, disable_tqdm=True
        )
        remote = api.list_repo_files(repo, "model", revision=revision)
        if old := old_files([file.path for file in remote if file.type != "tree"]):
            api.delete_files(repo, "model", old, revision=revision, commit_message=message)
        return
    api = hf_api()
    if revision:
        api.create_branch(repo, branch=revision, exist_ok=True)
    old = [escape(name) for name in old_files(api.list_repo_files(repo, revision=revision))]
    api.upload_folder(
        repo_id=repo, folder_path=folder, commit_message=message, revision=revision, delete_patterns=old or None
    )
