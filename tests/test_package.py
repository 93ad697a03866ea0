"""The package as it is built and laid out."""

import ast
import configparser
import graphlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import ROOT, build_tokenizer, tiny_model

PACKAGE = ROOT / "hf_recipes"
UNIX_ALONE = ("fcntl", "grp", "pwd", "resource", "termios")
# What a run in this process may have left.
OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
MOST_FILES = 12  # of a folder
# The rooms: each may import from those before it, and from itself.
ROOMS = (
    "core",
    "hub",
    "data",
    "privacy",
    "corpus",
    "importers",
    "models",
    "metrics",
    "rewards",
    "evaluation",
    "vocabulary",
    "trainer",
    "publishing",
    "export",
    "dry_run",
    "run",
    "stages",
    "inspection",
    "apps",
    "command",
)


def imported(tree: ast.Module) -> set[str]:
    """Dotted names that a file imports wherever in it, but for types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_imports_run_one_way_and_in_no_circle():
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    graph, wrong = {}, []
    for module, path in files.items():
        names = imported(ast.parse(path.read_text(encoding="utf-8")))
        graph[module] = {name if name in files else name.rpartition(".")[0] for name in names} & files.keys() - {module}
        roots = {name.split(".")[0] for name in names}
        # Locks are `core.files.locked`, on file systems and machines of every kind.
        forbidden = {"scripts", *UNIX_ALONE} | (
            {"trl", "torch", "peft"} if module.startswith("hf_recipes.data.") else set()
        )
        wrong += [f"{module} imports {root}" for root in roots & forbidden]
        if module not in ("hf_recipes.__init__", "hf_recipes.__main__"):
            rank = ROOMS.index(module.split(".")[1])
            wrong += [f"{module} imports {other}" for other in graph[module] if ROOMS.index(other.split(".")[1]) > rank]
    assert not wrong
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        raise AssertionError(f"a circle of imports: {' -> '.join(error.args[1])}") from None


def test_what_contributing_names_is_there():
    pages = [ROOT / "docs" / name for name in ("CONTRIBUTING.md", "en/adding.md", "zh/adding.md")]
    text, *others = (page.read_text(encoding="utf-8") for page in pages)
    for page in (text, *others):
        names = set(re.findall(r"`((?:hf_recipes|tests|configs|\w+)/[\w./]*)`", page)) - {"site/"}
        missing = [name for name in names if not ((ROOT / name).exists() or (PACKAGE / name).exists())]
        assert len(names) > 20 and not missing
    rooms = [room for row in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE) for room in re.findall(r"`(\w+)`", row)]
    assert sorted(rooms) == sorted(ROOMS)


def test_a_folder_can_be_taken_in_at_a_glance():
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MOST_FILES, folder


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts_are_thin(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 100


def test_the_samples_do_not_shadow_the_datasets_package():
    assert not (ROOT / "datasets" / "__init__.py").exists()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Where a built wheel lies, as pip would lay it down."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("hf_recipes", "scripts", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(pip, check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_every_room_and_the_scripts_and_configurations(installed):
    names = {path.relative_to(installed / "hf_recipes").as_posix() for path in (installed / "hf_recipes").rglob("*")}
    rooms = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.*") if path.suffix != ".pyc"}
    beside = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*") if path.is_file()}
    beside |= {f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py")}
    assert rooms | beside | {"command/flags.json", "models/templates/chatml.jinja"} <= names
    [points] = installed.glob("*.dist-info/entry_points.txt")
    assert "hf-recipes = hf_recipes.command.main:main" in points.read_text()


def test_the_wheel_trains_away_from_the_checkout(installed, model_dir, tmp_path):
    rows = [{"instruction": f"问{i}", "output": f"答{i}"} for i in range(4)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = f"--config sft_lora.yaml --model_name_or_path {model_dir} --output_dir run --max_steps 1 --report_to none"
    flags += (
        " --validation_split_percentage 25 --eval_steps 1 --save_steps 1 --gradient_accumulation_steps 1 --bf16 false"
    )
    done = subprocess.run(
        [sys.executable, "-m", "hf_recipes", "sft", *flags.split()],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in OF_A_LAUNCHER}
        | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    recorded = yaml.safe_load((tmp_path / "run" / "run_config.yaml").read_text(encoding="utf-8"))
    assert recorded["lora_config"] == "configs/lora_qwen.json"  # not where it was found
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert "--thinking off" in done.stdout


def test_without_what_windows_lacks_every_script_starts():
    code = """
import sys, runpy, glob
sys.modules["fcntl"] = None
import select
vars(select).pop("poll")
for path in sorted(glob.glob("scripts/*.py")):
    runpy.run_path(path)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_tokenizer_that_pads_is_nothing_to_warn_of(monkeypatch):
    from transformers.trainer_utils import align_special_tokens

    import hf_recipes  # noqa: F401 - the filter is set at import

    printed = []
    monkeypatch.setattr(logging.getLogger("transformers.trainer_utils"), "callHandlers", printed.append)
    model, tokenizer = tiny_model(100), build_tokenizer()
    model.config.pad_token_id = None
    align_special_tokens(model, tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert not printed


def test_every_package_that_is_imported_is_declared():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = [text for name, text in config["options.extras_require"].items() if name not in ("test", "docs")]
    lines = "\n".join([config["options"]["install_requires"], *extras]).split("\n")
    declared = {canonicalize_name(Requirement(line).name) for line in lines if line and line[0] != "#"}
    roots = {
        name.split(".")[0]
        for path in (*PACKAGE.rglob("*.py"), *(ROOT / "scripts").glob("*.py"))
        for name in imported(ast.parse(path.read_text(encoding="utf-8")))
    }
    # compression: of Python 3.14, where backports.zstd is not needed. vllm: brings a torch that it was built with.
    roots -= {*sys.stdlib_module_names, "hf_recipes", "compression", "vllm"}
    # llama-cpp-python is compiled when it is installed, so it is not in the environment of the tests.
    made_by = {"llama_cpp": ["llama-cpp-python"], **metadata.packages_distributions()}
    assert not {root for root in roots if not declared & {canonicalize_name(name) for name in made_by.get(root, ())}}


def test_the_lock_names_every_package_that_the_environment_is_built_of():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    locked = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = [config["options.extras_require"][name] for name in ("docs", "gguf", "tensorboard", "test")]
    wanted = {line for text in (config["options"]["install_requires"], *extras) for line in text.split("\n") if line}
    seen: set[tuple[str, str]] = set()
    while wanted:
        requirement = Requirement(wanted.pop())
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
                continue
            seen.add((name, extra))
            assert name in locked
            for line in metadata.requires(name) or ():
                dependency = Requirement(line)
                if dependency.marker is None or dependency.marker.evaluate({"extra": extra}):
                    dependency.marker = None
                    wanted.add(str(dependency))
    assert len(seen) > 100
