"""Files and folders that are complete or absent, locks that end with their process, and valid JSON."""

import contextlib
import errno
import glob
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import yaml
from filelock import FileLock, Timeout

from hf_recipes.core.errors import UserError, say

# Errors of writing a file that are neither a bug of this code nor of its caller.
_DISK = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EIO,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EROFS,
    errno.ESTALE,
}
# The same in the messages of torch, safetensors and tokenizers, which raise other types than OSError.
_DISK_SIGNS = re.compile(
    r"no space left|\(os error \d+\)|PytorchStreamWriter|inline_container.*unexpected pos|iostream error|I/O error|"
    r"file too large|disk quota|read-only file system|database or disk is full",
    re.IGNORECASE | re.DOTALL,
)
_LOCK = re.compile(r"\.(.+\.)?lock")  # names by `lock_of` and `folders.held`


def disk_problem(error: BaseException | None) -> str | None:
    """Why a file could not be written, if `error` or one of its causes is about that; else None."""
    # Its folder was deleted. As a cause it tells nothing, and without a file it is a client's word for a hub's answer.
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = " ".join(str(error).split())[:200]
        if isinstance(error, OSError) and error.errno in _DISK:
            return (error.strerror or text) + (f": {error.filename}" if error.filename else "")
        if _DISK_SIGNS.search(text):
            return text
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def writing(what: str, hint: str = "make room or name another folder") -> Iterator[None]:
    """Turn a full, read-only or forbidden disk into a `UserError` that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = disk_problem(error)
        if problem is None:
            raise
        raise UserError(f"{what}: cannot be written ({problem}); {hint}") from error


def to_json(value: Any, indent: int | None = None, default: Any = None) -> str:
    """JSON text, with null for NaN and infinities, which JSON does not have."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent, default=default, allow_nan=False)
    except ValueError:
        finite = _finite(json.loads(json.dumps(value, ensure_ascii=False, default=default)))
        return json.dumps(finite, ensure_ascii=False, indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _partial_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial-{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}")


def remove_abandoned(target: str | os.PathLike) -> None:
    """Remove the partial files of killed writers of `target` on this machine."""
    target = Path(target)
    name = re.compile(rf"{re.escape(f'{target.name}.partial-{socket.gethostname()}')}-(\d+)-\w+")
    for path in target.parent.glob(f"{glob.escape(target.name)}.partial-*"):
        if match := name.fullmatch(path.name):
            try:
                os.kill(int(match[1]), 0)
            except ProcessLookupError:
                _remove(path)
            except PermissionError:  # a running process of another user
                pass


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[Path]:
    """A path next to `path` to write to; it is renamed to `path` when nothing was raised, and removed otherwise."""
    target = Path(path)
    remove_abandoned(target)
    partial = _partial_of(target)
    try:
        yield partial
        os.replace(partial, target)
    except BaseException:
        _remove(partial)
        raise


@contextlib.contextmanager
def temporary_folder(path: str | os.PathLike) -> Iterator[Path]:
    """An empty folder next to `path`, which is removed when this ends."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target)
    partial = _partial_of(target)
    partial.mkdir()
    try:
        yield partial
    finally:
        _remove(partial)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """An empty folder next to `path`; it is renamed to `path` when nothing was raised, and removed otherwise.

    `path` must then be absent or empty (`is_empty`); else OSError.
    """
    with temporary_folder(path) as partial:
        yield partial
        share_weights(partial)
        move_folder(partial, path)


def share_weights(folder: str | os.PathLike) -> None:
    """Give weights the file mode of the umask; safetensors 0.8 makes them readable by their owner only."""
    weights = list(Path(folder).rglob("*.safetensors"))
    if weights:
        probe = _partial_of(Path(folder, "mode"))  # the umask cannot be read without setting it
        probe.touch()
        mode = probe.stat().st_mode & 0o666
        probe.unlink()
    for path in weights:
        path.chmod(mode)


def move_folder(folder: Path, path: str | os.PathLike) -> None:
    """Rename a folder to `path`, which must be absent or empty (`is_empty`); else OSError."""
    target = Path(path)
    if target.is_dir() and is_empty(target):
        for lock in target.iterdir():
            lock.unlink()
    os.replace(folder, target)


def move_files(source: Path, target: Path, names: Sequence[str]) -> None:
    """Replace the files `names` of `target`, in this order, by those of them that are in `source`.

    The old ones are deleted first, in reverse order: where the last of `names` is, it belongs to all others.
    """
    for name in reversed(names):
        (target / name).unlink(missing_ok=True)
    for name in names:
        if (source / name).exists():
            os.replace(source / name, target / name)


def visible_files(folder: str | os.PathLike) -> list[Path]:
    """The files in a folder, without links and hidden ones."""
    paths = sorted(Path(folder).iterdir())
    return [path for path in paths if path.is_file() and not path.is_symlink() and not path.name.startswith(".")]


def in_units(size: float) -> str:
    """Bytes for people: ``1.90 GB``, ``340 MB``."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def folder_bytes(folder: str | os.PathLike) -> int:
    """Of all files in a folder and below; 0 where it is not there."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def is_path(model: str) -> bool:
    """Whether what names a model can be no id on a hub."""
    return (os.path.sep in model and model.count("/") != 1) or model.startswith((".", "/", "~"))


def is_empty(folder: str | os.PathLike) -> bool:
    """Whether a folder has no files but locks."""
    return all(_LOCK.fullmatch(name) for name in os.listdir(folder))


class OnceLoader(yaml.SafeLoader):
    """YAML whose keys occur once, where PyYAML would take the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: dict[str, yaml.Node] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (first := seen.setdefault(key.value, key)) is not key:
                lines = " and ".join(str(node.start_mark.line + 1) for node in (first, key))
                raise yaml.YAMLError(f"{key.value!r} is given twice, in lines {lines}")
        return super().construct_mapping(node, deep)


class SettingsLoader(OnceLoader):
    """YAML of settings: dates are text, as are the words and numbers that are a key's value.

    ``save_strategy: no`` is the word of the file; YAML 1.1 would make it False, and 010 an 8. In a mapping 1e-6 is a
    number, where YAML 1.1 takes 1.0e-6 alone.
    """

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_document(self, node: yaml.Node) -> Any:
        for _, value in node.value if isinstance(node, yaml.MappingNode) else ():
            for item in value.value if isinstance(value, yaml.SequenceNode) else (value,):
                is_scalar = isinstance(item, yaml.ScalarNode) and item.tag.endswith((":bool", ":int", ":float"))
                if is_scalar and item.value.lower().lstrip("+-") not in ("true", "false", ".inf", ".nan"):
                    item.tag = self.DEFAULT_SCALAR_TAG
        return super().construct_document(node)


SettingsLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), "-+0123456789")


def read_mapping(path: str, flag: str, as_yaml: bool = False, as_text: bool = True) -> dict[str, Any]:
    """The JSON object, or the YAML mapping (empty for an empty file), in the file that `flag` names.

    Args:
        path: of the file, or the JSON object itself.
        as_text: of YAML, leave words and numbers as the text that they are in the file.
    """
    kind = "YAML mapping" if as_yaml else "JSON object"
    try:
        text = path if path.lstrip().startswith(("{", "[")) else Path(path).read_text(encoding="utf-8-sig")
        value = yaml.load(text, SettingsLoader if as_text else OnceLoader) if as_yaml else parse_json(text)
    except FileNotFoundError:
        raise UserError(f"{flag} {path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{flag} {path}: not UTF-8 text; save it as UTF-8") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{flag} {path}: not {kind.split()[0]} ({' '.join(str(error).split())})") from None
    if value is None and as_yaml:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{flag} {path}: expected a {kind}, found a {type(value).__name__}")
    return value


def parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_keys_once)


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which Python's reader would take the last value of a key that is given twice."""
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"{key!r} is given twice")
        value[key] = item
    return value


def write_text(path: str | os.PathLike, text: str) -> None:
    with new_file(path) as partial:
        # A file name that is no text has lone surrogates, which JSON has escapes for.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 2) -> None:
    write_text(path, to_json(value, indent) + "\n")


def write_jsonl(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    with new_file(path) as partial, open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(to_json(row) + "\n" for row in rows)


def lock_of(path: str | os.PathLike) -> Path:
    """The lock file of a file or folder: next to it, hidden, and never deleted."""
    target = Path(os.path.abspath(path))
    return target.with_name(f".{target.name}.lock")


@contextlib.contextmanager
def locked(path: str | os.PathLike, busy: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, which is created with its folder; it is released however the process ends.

    Args:
        busy: message if another process holds it: printed before waiting, else raised.
        wait: seconds; -1 waits without limit.
    """
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise
            say(busy)
            lock.acquire(timeout=wait)
    except Timeout:
        raise UserError(busy) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be locked ({disk_problem(error) or error}); name another folder") from None
    try:
        yield
    finally:
        lock.release()


def make_once(target: Path, is_complete: Callable[[], bool], make: Callable[[], object], verb: str = "makes") -> None:
    """Make a file or folder unless it is complete, also after waiting for another process that makes the same."""
    if not is_complete():
        with locked(lock_of(target), f"{target}: another process {verb} it; waiting for its end", wait=-1):
            if not is_complete():
                make()
