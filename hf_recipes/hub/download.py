"""Downloads of models, and of ModelScope's data sets, into folders that are complete or absent."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import in_units, is_empty, make_once, move_folder, write_json
from hf_recipes.hub import clients as hub

FETCHES = "is fetching"  # for `make_once`
# The same weights in other formats, where there are safetensors.
_DUPLICATES = (".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".pkl", ".pickle")
_FOREIGN = (".onnx", ".onnx_data", ".gguf", ".tflite", ".mlmodel", ".mlpackage")
_FOREIGN_FOLDERS = {"original", "onnx", "openvino", "coreml", "metal", "gguf"}


@dataclass(frozen=True)
class RemoteFile:
    """A file with the server's size in bytes and digest, ``sha256`` or, for small text, git's ``sha1``."""

    path: str
    size: int
    algorithm: str = "sha256"
    digest: str | None = None


def download(model: str, source: str, revision: str | None = None, output_dir: str | None = None) -> Path:
    """Download a model into a folder that appears only when every file has the server's size and digest.

    Until then it is ``<folder>.partial``, of which a second call fetches only the missing bytes. A call waits while
    another process downloads to the same folder. Where there are safetensors, other formats of the weights are skipped.

    Args:
        source: ``"hf"`` or ``"modelscope"``.
        output_dir: see `target_folder`.
    """
    target = target_folder(model, output_dir)
    repository = _ModelScope(model, revision) if source == "modelscope" else _HuggingFace(model, revision)
    with _errors_explained(target, repository):
        files = _select(model, repository.files())

        def fetch() -> None:
            partial = _fetch(target, files, repository)
            write_source_record(partial, repository.target, repository.model, repository.revision)
            move_folder(partial, target)

        make_once(target, lambda: _is_complete(target, files, repository), fetch, FETCHES)
    return target


def download_data(name: str, root: Path) -> Path:
    """Download a data set of ModelScope into a folder in `root`, once: where it is there, nothing is asked."""
    target = root / "modelscope_data" / name.replace("/", "--")
    if target.is_dir():
        return target
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"modelscope:{name}: not in the cache {root}, and HF_HUB_OFFLINE is set")
    repository = _ModelScope(name, None, "dataset")
    with _errors_explained(target, repository):
        files = _inside(name, repository.files())
        make_once(target, target.is_dir, lambda: move_folder(_fetch(target, files, repository), target), FETCHES)
    return target


@contextmanager
def _errors_explained(target: Path, repository: "_HuggingFace | _ModelScope") -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except hub.client_errors(repository.target) as error:
        has_begun = target.with_name(f"{target.name}.partial").is_dir()
        hint = "; the same command resumes where this one stopped" if has_begun else ""
        text = hub.explain(error, repository.model, repository.target, downloads=True)
        if repository.kind == "dataset":
            text = text.removesuffix(hub.UNREACHABLE["modelscope"])  # which names a flag of models
        raise UserError(text + hint) from None


def target_folder(model: str, output_dir: str | None) -> Path:
    """The folder to download a model to, by default ``models/<name>``."""
    target = Path(output_dir or Path("models", model.split("/")[-1]))
    if target.name in ("", "..") or target.is_symlink():  # its partial folder needs a name
        target = target.resolve()
    if os.path.exists(target) and not os.path.isdir(target):
        raise UserError(f"{target}: this is a file; name a folder with --output_dir")
    return target


def _is_complete(target: Path, files: list[RemoteFile], repository: "_HuggingFace | _ModelScope") -> bool:
    """Whether the folder has all files of the server; an error if it has other ones."""
    if not target.is_dir() or is_empty(target):
        return False
    for file in files:
        problem = _difference(target / file.path, file)
        if problem and hub.source_of(target) == (repository.target, repository.model):
            raise UserError(
                f"{target / file.path}: {problem}; delete {target} to download it again, or name another folder with "
                "--output_dir"
            )
        if problem:
            raise occupied(target)
    say(f"{target} is complete already")
    return True


def _fetch(target: Path, files: list[RemoteFile], repository: "_HuggingFace | _ModelScope") -> Path:
    """The folder with all files, next to `target`."""
    partial = target.with_name(f"{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    missing = [file for file in files if _difference(partial / file.path, file)]
    total = sum(file.size for file in files)
    present = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    free = shutil.disk_usage(partial).free
    if total - present > free:
        raise UserError(
            f"{target}: {in_units(total - present)} are missing, {in_units(free)} are free on the disk; make "
            "room or choose another with --output_dir"
        )
    if present:
        say(f"resuming in {partial}: {len(missing)} of {len(files)} files are missing")
    say(f"{repository.model}: {len(files)} files, {in_units(total)}")
    repository.fetch(missing, partial)
    for file in missing:
        path = partial / file.path
        if problem := _difference(path, file):
            path.unlink(missing_ok=True)
            raise UserError(f"{path}: {problem}; it has been deleted; run the same command to fetch it again")
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    for path in partial.rglob("*.incomplete"):  # of another revision, which an earlier call began with
        path.unlink()
    return partial


def occupied(target: Path) -> UserError:
    return UserError(f"{target}: the folder is not empty; name another with --output_dir")


def write_source_record(folder: Path, source: str, model: str, revision: str | None) -> None:
    write_json(folder / hub.SOURCE_RECORD, {"source": source, "model": model, "revision": revision})


def _select(model: str, files: list[RemoteFile]) -> list[RemoteFile]:
    """The files that a model is loaded from, with safetensors preferred to other formats of the weights."""
    names = {file.path for file in _inside(model, files)}
    if not names & {"config.json", "adapter_config.json"}:
        raise UserError(
            f"{model}: no config.json in it, so --model_name_or_path cannot load it (convert a GGUF file with "
            "scripts/convert_gguf.py)"
        )
    safe = {name for name in names if name.endswith(".safetensors") and "/" not in name}
    plain = {name for name in safe if not name.startswith("consolidated")}
    skipped = _FOREIGN + (_DUPLICATES if safe else ())
    if not safe:
        say(f"{model}: no safetensors in it; its weights are pickles, which only the conversion should read")
    return [
        file
        for file in files
        if not file.path.endswith(skipped)
        and PurePosixPath(file.path).parts[0] not in _FOREIGN_FOLDERS
        and (not plain or file.path not in safe - plain)
    ]


def _inside(name: str, files: list[RemoteFile]) -> list[RemoteFile]:
    """The files; an error where one would be outside of the folder."""
    for file in files:
        if ".." in PurePosixPath(file.path).parts or PurePosixPath(file.path).is_absolute() or "\\" in file.path:
            raise UserError(f"{name}: the server names a file outside of the folder ({file.path})")
    return files


def _difference(path: Path, file: RemoteFile) -> str | None:
    """How a local file differs from the server's, or None."""
    if not path.is_file():
        return "the file is missing"
    size = path.stat().st_size
    if size != file.size:
        return f"{size:,} bytes, the server has {file.size:,}"
    if file.digest is None:
        return None
    digest = hashlib.new(file.algorithm)
    if file.algorithm == "sha1":
        digest.update(b"blob %d\0" % size)  # git's blob id
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return None if digest.hexdigest() == file.digest else f"damaged, its {file.algorithm} is not the server's"


class _HuggingFace:
    target: hub.Target = "hf"
    kind = "model"

    def __init__(self, model: str, revision: str | None):
        self.model, self.revision = model, revision

    def files(self) -> list[RemoteFile]:
        info = hub.hf_api().model_info(self.model, revision=self.revision, files_metadata=True)
        self.revision = info.sha
        return [
            RemoteFile(entry.rfilename, entry.lfs.size, "sha256", entry.lfs.sha256)
            if entry.lfs
            else RemoteFile(entry.rfilename, entry.size or 0, "sha1", entry.blob_id)
            for entry in info.siblings or []
        ]

    def fetch(self, files: list[RemoteFile], folder: Path) -> None:
        # hf_hub_download deletes an unfinished file when its process is killed; http_get resumes it.
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        for file in files:
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{(file.digest or '')[:12]}.incomplete")
            with open(partial, "ab") as stream:
                if stream.tell() > file.size:
                    stream.truncate(0)
                http_get(
                    hf_hub_url(self.model, file.path, revision=self.revision),
                    stream,
                    resume_size=stream.seek(0, os.SEEK_END),
                    headers={**build_hf_headers(), "Accept-Encoding": "identity"},
                    expected_size=file.size,
                    displayed_filename=file.path,
                )
            os.replace(partial, path)


class _ModelScope:
    target: hub.Target = "modelscope"

    def __init__(self, model: str, revision: str | None, kind: Literal["model", "dataset"] = "model"):
        self.model, self.revision, self.kind, self.api = model, revision, kind, hub.modelscope_api()

    def files(self) -> list[RemoteFile]:
        entries = self.api.list_repo_files(self.model, self.kind, revision=self.revision)
        return [RemoteFile(e.path, e.size, "sha256", e.sha256 or None) for e in entries if e.type != "tree"]

    def fetch(self, files: list[RemoteFile], folder: Path) -> None:
        wanted = [{"Path": file.path, "Size": file.size, "Sha256": file.digest} for file in files]
        self.api.download_repo(self.model, self.kind, revision=self.revision, local_dir=folder, file_list=wanted)
