"""Hugging Face and ModelScope: tokens, errors in words, and what goes up; `download` has what comes down.

huggingface_hub takes the address of a mirror from HF_ENDPOINT when it is imported, modelscope's client from
MODELSCOPE_ENDPOINT. Tokens are read from the environment or a login, never kept in arguments or files of a run.
"""

import errno
import os
import re
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from hf_recipes.errors import UserError, say

Target = Literal["hf", "modelscope"]
NAMES = {"hf": "the Hugging Face Hub", "modelscope": "ModelScope"}
TOKENS = {"hf": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}
LOGINS = {"hf": "hf auth login", "modelscope": "modelscope login"}
SOURCE_RECORD = "download.json"  # in a downloaded folder: where it is from
UNREACHABLE = (
    "; in mainland China set HF_ENDPOINT=https://hf-mirror.com or take --source modelscope, without a network copy the "
    "folder from another machine"
)
TIMEOUT = 120.0  # seconds without an answer


def keep_token(token: str | None, target: Target) -> None:
    """Hand a token to the clients through this process's environment, where no file of a run comes from."""
    if token:
        os.environ[TOKENS[target]] = token


def secrets() -> list[str]:
    """The tokens that this process knows."""
    from huggingface_hub import get_token

    found = [os.environ.get(name) for name in (*TOKENS.values(), "HUGGING_FACE_HUB_TOKEN")]
    with suppress(Exception):  # a login that has run out is renewed over the network
        found.append(get_token())
    return [value for value in found if value]


def check_destination(repo: str | None, target: Target) -> None:
    """Raise `UserError` for a repository name that no hub takes, or a client that is not installed."""
    if not repo:
        raise UserError("--push_to_hub: where to is missing; give --hub_model_id OWNER/NAME")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise UserError(f"--hub_model_id {repo}: expected OWNER/NAME")
    if target == "modelscope":
        _check_modelscope()


def _check_modelscope() -> None:
    if find_spec("modelscope_hub") is None:
        raise UserError("ModelScope's client is not installed: pip install modelscope")


def modelscope_api():
    """ModelScope's client with the token of this moment."""
    _check_modelscope()
    import logging

    from modelscope_hub import HubApi, HubConfig

    logging.getLogger("modelscope_hub").setLevel(logging.WARNING)

    return HubApi(HubConfig())  # not its shared default, which keeps the first token that it saw


def explain(error: Exception, name: str, target: Target, *, downloads: bool = False) -> str:
    """An error of either client in a sentence without a token: what failed and what to do."""
    from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if type(error) is RuntimeError and isinstance(error.__cause__, Exception):
        error = error.__cause__
    where = f"{name} on {NAMES[target]}"
    login = f"log in ({LOGINS[target]}) or set {TOKENS[target]}"
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status_code", None)
    if isinstance(error, GatedRepoError):
        return f"{where} is open to those who asked: accept the licence on its page, then {login}"
    if isinstance(error, RevisionNotFoundError):
        return f"{where}: no such revision"
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"{where}: no such repository, or a private one; check the name, or {login}"
    if status in (401, 403):
        return f"{where}: not allowed ({status}); {'accept the licence on its page, ' * downloads}{login}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{where}: the disk is full"
    if status is None and isinstance(error, (HTTPError, OSError)):
        return f"{where}: no connection ({_short(error)}){UNREACHABLE * downloads}"
    return f"{where}: {_short(error)}"


def client_errors(target: str) -> tuple[type[Exception], ...]:
    """What a hub's client raises for a failure that is not ours."""
    from huggingface_hub.errors import HTTPError

    if target != "modelscope":
        return (HTTPError, OSError, ValueError, RuntimeError)
    from modelscope_hub import HubError

    return (HubError, OSError)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    for secret in secrets():
        text = text.replace(secret, "***")
    return text if len(text) <= 200 else f"{text[:200]}…"


def size_text(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def hf_api():
    """huggingface_hub's client, which would otherwise wait for an answer for ever."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars, get_session

    get_session().timeout = TIMEOUT
    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi()


def ensure_repository(repo: str, target: Target, *, private: bool) -> str:
    """Create the repository unless it is there, and return its address; one that is public already stays so."""
    if target == "modelscope":
        api = modelscope_api()
        if not api.repo_exists(repo, "model"):
            api.create_repo(repo, "model", visibility="private" if private else "public")
        return f"{api._config.endpoint}/models/{repo}"
    api = hf_api()
    url = api.create_repo(repo, private=private, exist_ok=True)
    if private and api.model_info(repo).private is False:
        say(f"{url} is there already and public; it stays public")
    return str(url)


def upload(folder: Path, repo: str, target: Target, *, revision: str | None, message: str) -> None:
    """Commit every file of a folder to a repository that is there."""
    if target == "modelscope":
        modelscope_api().upload_folder(
            repo, "model", folder, revision=revision, commit_message=message, use_cache=False, disable_tqdm=True
        )
        return
    api = hf_api()
    if revision:
        api.create_branch(repo, branch=revision, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, revision=revision)
