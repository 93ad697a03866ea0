"""The pages: in both languages the same, and all that they name is there; their commands are parsed as they stand."""

import configparser
import importlib.util
import json
import re
import runpy
import shlex
from dataclasses import fields

import pytest

from doc_pages import PAGES, ROOT, TWINS, blocks, commands, name_of, read
from hf_recipes.command.flags import flags_of
from hf_recipes.command.main import OTHERS, take_processes
from hf_recipes.command.record_flags import parsers_of
from hf_recipes.core.arguments.commands import COMMANDS
from hf_recipes.core.arguments.other_names import name_here
from hf_recipes.core.arguments.settings import Parser
from hf_recipes.core.errors import UserError
from hf_recipes.data.schemas.columns import Columns
from hf_recipes.data.schemas.registry import DOCUMENT_SCHEMAS, SCHEMAS, detect_schema
from hf_recipes.evaluation.registry import EvaluationArguments
from hf_recipes.export.merge import MergeArguments
from hf_recipes.stages.table import STAGES

MESSAGES = ROOT / "docs" / "en" / "messages.md"
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
TEXT = {page: read(page) for page in PAGES}
# Programs of others, and what they are called with.
FOREIGN = r"(git clone|cd|echo|transformers serve|vllm serve|ollama (create|run)|"
FOREIGN += r"docker (build|run)|python3 -m venv|\. [\w./]+/bin/activate) ?.*"
# Flags of torchrun, DeepSpeed, accelerate, vLLM, llama.cpp and lm-eval.
OF_OTHERS = {"max_restarts", "num_gpus", "num_processes", "nproc_per_node", "max-lora-rank", "jinja"}
OF_OTHERS |= {"model_args", "tasks"}
PLACEHOLDERS = {"prepare-corpus": "--input_files a.jsonl --output_dir corpus"}  # what … stands for
ANY_TRAINING = "--model_name_or_path MODEL --train_file train.json --output_dir runs/x"
# Made by commands before those that need them.
FOLDERS = ("data", "runs/bilibili-data", "runs/qq-data", "runs/viewers-data", "runs/me-data")


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def parsers() -> dict[str, list[Parser]]:
    """Those that each script makes."""
    return {path.name: parsers_of(path.name) for path in SCRIPTS}


@pytest.fixture(scope="module")
def known_flags() -> set[str]:
    flags = {flag for name in COMMANDS for flag in flags_of(name)}
    return (
        flags | OF_OTHERS | {"config", "help", "help_all"} | set(re.findall(r'"--(\w+)"', sources("tests/benchmarks")))
    )


def inline(text: str) -> list[str]:
    """What stands between backticks, outside fenced blocks."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def without_comments(block: str) -> list[str]:
    return [re.sub(r"\s*#.*", "", line) for line in block.splitlines()]


def test_every_page_has_its_twin():
    assert set(TWINS.values()) <= set(PAGES)
    alone = set(PAGES) - set(TWINS) - set(TWINS.values())
    assert {name_of(page) for page in alone} == {"datasets/README.md", "docs/CONTRIBUTING.md"}


@pytest.mark.parametrize("page", TWINS, ids=name_of)
def test_both_languages_say_the_same(page):
    text, twin = TEXT[page], TEXT[TWINS[page]]
    assert commands(text) == commands(twin)
    assert blocks(text, "json") == blocks(twin, "json")
    assert [without_comments(block) for block in blocks(text, "python")] == [
        without_comments(block) for block in blocks(twin, "python")
    ]
    for kind in (r"^## ", r"^### ", r"^- ", r"^\d\. ", r"^\|"):
        assert len(re.findall(kind, text, re.MULTILINE)) == len(re.findall(kind, twin, re.MULTILINE)), kind
    assert set(inline(text)) == set(inline(twin))


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
def test_readmes_are_short(name):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", TEXT[page]):
        assert target.startswith("https://") or (page.parent / target).exists() or target == "flags.md", target


def test_readmes_link_to_every_page():
    for readme, language in (("README.md", "en"), ("README_zh.md", "zh")):
        linked = set(re.findall(rf"docs/{language}/(\w+\.md)", TEXT[ROOT / readme]))
        assert linked == {page.name for page in (ROOT / "docs" / language).glob("*.md")}


def parts() -> dict[str, str]:
    """Every command of the pages, of pipes and `&&` each part, with a page that has it."""
    lines = {}
    for page, text in TEXT.items():
        code = [code for code in inline(text) if code.startswith("python ")]
        lines |= dict.fromkeys((*commands(text), *code), name_of(page))
    return {part: page for line, page in lines.items() for part in re.split(r" && | \| ", line)}


def parse(parsers: list[Parser], words: list[str]) -> None:
    """Read a command line by the first parser that takes it, or raise the first one's error."""
    problem = None
    for parser in parsers:
        try:
            parser.parse(words)
        except UserError as error:
            problem = problem or error
        else:
            return
    raise problem


def test_commands_are_parsed_as_they_stand(parsers, tmp_path, monkeypatch):
    for name in ("configs", "datasets"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in FOLDERS:
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "x.yaml").write_text("{model_name_or_path: MODEL, train_file: train.json, output_dir: runs/x}")
    monkeypatch.chdir(tmp_path)
    count = 0
    for part, page in parts().items():
        command = re.fullmatch(r"(.*? )?(?:\S*scripts/(\w+\.py)|hf-recipes ([a-z-]+))( .*)?", part)
        if command is None or command[3] in (*OTHERS, "COMMAND"):
            continue
        launcher, script, name, flags = (group or "" for group in command.groups())
        words = shlex.split(flags.replace("…", PLACEHOLDERS.get(name, ANY_TRAINING)))
        take_processes(words)
        script = script or COMMANDS[name].script_for(words).name
        assert not script or name or re.match(r"(torchrun|accelerate launch|deepspeed|sbatch)\b", part), (
            f"{page}: {part}"
        )
        for path in re.findall(r"configs/\S+", launcher):
            assert (ROOT / path).is_file(), f"{page}: {path}"
        if launcher.startswith("sbatch"):
            words = words[1:]  # the run's folder
        if "--deepspeed" in words:  # reading it begins to compile
            at = words.index("--deepspeed")
            assert (ROOT / words[at + 1]).is_file(), f"{page}: {part}"
            del words[at : at + 2]
        try:
            parse(parsers[script], words)
        except UserError as error:
            raise AssertionError(f"{page}: {part}") from error
        count += 1
    assert count > 60


def test_other_commands_name_what_is_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {name for line in re.findall(r"^([\w \-]+):", makefile, re.MULTILINE) for name in line.split()}
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    for part, page in parts().items():
        if "scripts/" in part or part.startswith("hf-recipes "):
            continue
        if part.startswith("make "):
            assert part.split()[1] in targets, f"{page}: {part}"
        elif part.startswith("pip install"):
            for extra in re.findall(r"'\.\[([\w,]+)\]'", part):
                assert set(extra.split(",")) <= set(config["options.extras_require"]), f"{page}: {part}"
        elif part == "python -m hf_recipes":
            assert (ROOT / "hf_recipes" / "__main__.py").is_file()
        elif part.startswith("python tests/"):
            assert (ROOT / part.split()[1]).is_file(), f"{page}: {part}"
        else:
            assert re.fullmatch(FOREIGN, part), f"{page}: {part}"


def sources(*folders: str) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_files_and_targets_that_pages_name_are_there(page, known_flags):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for code in inline(TEXT[page]):
        for flag in re.findall(r"(?<![\w-])--([a-z][\w-]+)", code):
            assert flag in known_flags, f"--{flag}"
        for name in re.findall(r"^hf-recipes ([a-z-]+)", code):
            assert name in (*COMMANDS, *OTHERS), code
        for path in re.findall(r"(?<![\w/.])(?:configs|tests|scripts|docs|hf_recipes)/[\w/.]+\.\w+", code):
            assert (ROOT / path).is_file(), path
        for target in re.findall(r"^make ([\w-]+)", code):
            assert re.search(rf"^(?:[\w-]+ )*{target}(?: [\w-]+)*:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_schema_reads_its_example(language):
    text = TEXT[ROOT / "docs" / language / "data.md"]
    examples = re.findall(r"^### `(\w+)`\n(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL)
    assert {name for name, _ in examples} == {*SCHEMAS, *DOCUMENT_SCHEMAS}
    for name, body in examples:
        for line in "".join(blocks(body, "json")).splitlines():
            row, detected = json.loads(line), set()
            for reads in ("examples", "documents", "prompts"):
                try:
                    schema = detect_schema(row, Columns(reads=reads), "data.jsonl")
                except UserError:  # not for this use
                    continue
                schema.convert(row, schema.columns)
                detected.add(schema.name)
            assert name in detected, line


@pytest.mark.parametrize("language", ["en", "zh"])
def test_names_of_llama_factory_lead_where_the_page_says(language):
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", TEXT[ROOT / "docs" / language / "llama_factory.md"], re.MULTILINE)
    scripts = [*map(fields_of, STAGES.values()), {field.name for field in fields(MergeArguments)}]
    assert len(rows) > 35
    for name, here in rows:
        named = set(re.findall(r"`(\w+)`", here))
        answers = [name_here(name, known) for known in scripts]
        assert name in named or any(answer and all(one in answer for one in named) for answer in answers), name


def fields_of(stage) -> set[str]:
    kinds = (stage.model, stage.data, stage.arguments, EvaluationArguments)
    return {field.name for kind in kinds for field in fields(kind) if field.init}


def test_messages_of_the_page_are_those_of_the_code():
    """What stands between the parts that differ, … or N, of each message in the first column."""
    code = re.sub(r'"\s*\n\s*f?"', "", sources("hf_recipes"))  # a text over several lines
    messages = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*?) \|", TEXT[MESSAGES], re.MULTILINE)))
    parts = [part.strip() for message in messages for part in re.split(r"…|\b[NM]\b|'\w+'|: ", message)]
    assert len(messages) > 20 and not [part for part in parts if part not in code]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_reference_has_every_flag(reference, language):
    text = reference.page(language)
    table = {}
    for part in text.split("\n## ")[1:]:
        title, _, body = part.partition("\n")
        table[title] = re.findall(r"^\| `--(\w+)` \| .* \| (.*) \|$", body, re.MULTILINE)
    shared = {name for name, _ in table[reference.WORDS[language]["shared"]]}
    assert all({flag for flag, _ in table[name]} | shared == fields_of(stage) for name, stage in STAGES.items())
    names = {flag for rows in table.values() for flag, _ in rows}
    assert set(re.findall(r"^    (\w+): .* = setting\(", sources("hf_recipes", "scripts"), re.MULTILINE)) <= names
    assert not [flag for rows in table.values() for flag, meaning in rows if not meaning.strip()]


def test_chinese_lines_are_joined_without_a_space():
    join = runpy.run_path(str(ROOT / "docs" / "line_breaks.py"))["on_page_markdown"]
    text = "每一行，\n都计数。\nABC\n接着\n\n- 一\n  二\n- 三\n\n```text\n一\n二\n```\n"
    assert join(text) == "每一行，都计数。\nABC\n接着\n\n- 一二\n- 三\n\n```text\n一\n二\n```\n"
