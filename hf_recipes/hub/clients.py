"""The clients of Hugging Face and ModelScope: tokens, names of repositories, and their errors in words.

huggingface_hub reads the address of a mirror from HF_ENDPOINT when it is imported, modelscope's client from
MODELSCOPE_ENDPOINT. Tokens come from the environment or a login, and are never written to a file of a run.
"""

import errno
import json
import os
import re
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from hf_recipes.core.errors import UserError

Target = Literal["hf", "modelscope"]
NAMES = {"hf": "the Hugging Face Hub", "modelscope": "ModelScope"}
TOKENS = {"hf": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}
SECRET_VARIABLES = (*TOKENS.values(), "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "SWANLAB_API_KEY")
ENDPOINTS = ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT")
LOGINS = {"hf": "hf auth login", "modelscope": "modelscope login"}
SOURCE_RECORD = "download.json"  # in a downloaded folder: source, model and revision
COPY = "without a network copy the folder from another machine"
UNREACHABLE = {
    "hf": f"; in mainland China set HF_ENDPOINT=https://hf-mirror.com or use --source modelscope, {COPY}",
    "modelscope": f"; use --source hf, {COPY}",
}
TIMEOUT = 120.0  # seconds without a response


def export_token(token: str | None, target: Target) -> None:
    """Pass a token to the clients through the environment of this process."""
    if token:
        os.environ[TOKENS[target]] = token


def secrets() -> list[str]:
    """All tokens, keys and passwords of mirrors in the environment and in logins."""
    from huggingface_hub import get_token

    values = [os.environ.get(name) for name in SECRET_VARIABLES]
    for name in ENDPOINTS:
        password = urlsplit(os.environ.get(name, "")).password or ""
        values += [password, unquote(password)]
    with suppress(Exception):  # an expired login is renewed over the network
        values.append(get_token())
    with suppress(Exception):  # the client is optional, and its login may be damaged
        from modelscope_hub import HubConfig

        values.append(HubConfig().load_token())
    return [value for value in values if value and len(value) >= 8]  # shorter ones occur in texts by chance


def check_destination(repo: str | None, target: Target) -> None:
    """Refuse an invalid repository name, or a client that is not installed."""
    if not repo:
        raise UserError("--push_to_hub: the repository is missing; give --hub_model_id OWNER/NAME")
    check_name(repo, "--hub_model_id")
    if target == "modelscope":
        _check_modelscope()


def check_name(name: str, flag: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise UserError(f"{flag} {name}: expected OWNER/NAME")


def _check_modelscope() -> None:
    if find_spec("modelscope_hub") is None:
        raise UserError("ModelScope's client is not installed: pip install modelscope")


def modelscope_api():
    """ModelScope's client, with the current token."""
    _check_modelscope()
    import logging

    from modelscope_hub import HubApi, HubConfig

    logging.getLogger("modelscope_hub").setLevel(logging.WARNING)

    return HubApi(HubConfig())  # its shared default keeps the first token


def explain(error: Exception, name: str, target: Target, *, downloads: bool = False) -> str:
    """An error of either client as a sentence without secrets: what failed and what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if type(error) is RuntimeError and isinstance(error.__cause__, Exception):
        error = error.__cause__
    where = f"{name} on {NAMES[target]}"
    login = f"log in ({LOGINS[target]}) or set {TOKENS[target]}"
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status_code", None)
    if isinstance(error, GatedRepoError):
        return f"{where} is gated: accept the licence on its page, then {login}"
    if isinstance(error, RevisionNotFoundError):
        return f"{where}: no such revision"
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"{where}: no such repository, or a private one; check the name, or {login}"
    if status == 403 and not downloads:
        owner = name.split("/")[0]
        return f"{where}: not allowed (403): this login may not write to {owner}; use your own name, or {login}"
    if status in (401, 403):
        return f"{where}: not allowed ({status}); {'accept the licence on its page, ' * downloads}{login}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{where}: the disk is full"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if status is None and isinstance(error, (HTTPError, OSError)):
        if isinstance(error, OfflineModeIsEnabled):
            return f"{where}: HF_HUB_OFFLINE is set, so nothing is {'fetched' if downloads else 'sent'}"
        return f"{where}: no connection ({_short(error)}){UNREACHABLE[target] * downloads}"
    return f"{where}: {_short(error)}"


def client_errors(target: str) -> tuple[type[Exception], ...]:
    """Exceptions of a hub's client that are no bugs of this code."""
    from huggingface_hub.errors import HTTPError

    if target != "modelscope":
        return (HTTPError, OSError, ValueError, RuntimeError)
    from modelscope_hub import HubError

    return (HubError, OSError)


def source_of(folder: str | os.PathLike) -> tuple[str, str] | None:
    """The source and the model that a folder was downloaded from, by its record, or None."""
    try:
        record = json.loads(Path(folder, SOURCE_RECORD).read_text(encoding="utf-8"))
        return str(record["source"]), str(record["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//", text)


def _short(error: Exception) -> str:
    text = _without_password(" ".join(str(error).split())) or type(error).__name__
    for secret in secrets():
        text = text.replace(secret, "***")
    return text if len(text) <= 200 else f"{text[:200]}…"


def hf_api():
    """huggingface_hub's client, with a timeout."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars, get_session

    get_session().timeout = TIMEOUT
    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi()
