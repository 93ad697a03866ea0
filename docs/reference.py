"""The page of all flags, made while mkdocs builds the others: what every training stage takes, then each command.

A command's flags are those of the parser that its script makes.
"""

import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from mkdocs.structure.files import File, Files

from hf_recipes.core.settings import Parser
from hf_recipes.run.inherited import UNUSABLE
from hf_recipes.stages.table import STAGES

SCRIPTS = Path(__file__).parents[1] / "scripts"
MODES = {"inspect_data": ("--tokenizer", "--score")}  # flags with which a command takes others
WORDS = {
    "en": {
        "title": "All flags",
        "intro": "Each is a key of a `--config` file too; flags win over the file. Of a flag that a stage inherits and "
        "cannot use, what to do instead.",
        "shared": "Every training stage",
        "beside": "Beside what [every training stage](#every-training-stage) takes:",
        "inspect": "Beside those of the stage that is inspected:",
        "table": "| flag | default | meaning |",
        "required": "required",
    },
    "zh": {
        "title": "全部参数",
        "intro": "每个参数也是 `--config` 文件里的键；命令行优先于文件。某阶段继承而用不了的参数，写明改用什么。"
        "说明文字为英文，与 `--help` 相同。",
        "shared": "训练各阶段通用",
        "beside": "在[训练各阶段通用](#训练各阶段通用)的参数之外：",
        "inspect": "在所检查的阶段的参数之外：",
        "table": "| 参数 | 默认 | 含义 |",
        "required": "必需",
    },
}


class _ParserReady(BaseException):
    """Ends a script where it would parse its command line."""


@dataclass(frozen=True)
class Flag:
    name: str
    default: str  # as on a command line; empty where there is none
    required: bool
    text: str

    def row(self, words: dict[str, str]) -> str:
        default = words["required"] if self.required else f"`{self.default}`" if self.default else ""
        return f"| `--{self.name}` | {default} | {self.text} |"


def parser_of(script: Path, mode: str | None = None) -> Parser:
    """The parser that a script makes, with the first of `MODES` or another as its only flag."""

    def stop(parser: Parser, argv: Sequence[str] | None = None):
        raise _ParserReady(parser)

    with patch.object(Parser, "parse", stop), patch.object(sys, "argv", [script.name, *filter(None, [mode])]):
        try:
            runpy.run_path(str(script), run_name="__main__")
        except _ParserReady as ready:
            return ready.args[0]
    raise AssertionError(f"{script} makes no parser")


def flags_of(parser: Parser) -> list[Flag]:
    actions = {action.dest: action for action in parser._actions}
    unusable = UNUSABLE if any(hasattr(kind, "unusable") for kind in parser.dataclass_types) else {}
    for kind in parser.dataclass_types:
        unusable = unusable | getattr(kind, "unusable", {})
    flags = []
    for name in parser.fields:
        action, default = actions[name], parser.get_default(name)
        text = f"Refused: it {unusable[name]}." if name in unusable else action.help or ""
        if action.choices:
            text += f" One of {', '.join(f'`{choice}`' for choice in action.choices)}."
        default = getattr(default, "value", default)
        default = " ".join(map(str, default)) if isinstance(default, list) else "" if default is None else str(default)
        flags.append(Flag(name, default, action.required, _in_a_cell(text.replace("%%", "%"))))
    return flags


def _in_a_cell(text: str) -> str:
    """Text as Markdown of a table's cell, without HTML where it is no code."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(part if index % 2 else part.replace("<", "&lt;") for index, part in enumerate(parts))


def page(language: str) -> str:
    words = WORDS[language]

    def table(flags: Sequence[Flag]) -> list[str]:
        return ["", words["table"], "| --- | --- | --- |", *(flag.row(words) for flag in flags)]

    stages = {name: flags_of(parser_of(SCRIPTS / f"{name}.py")) for name in STAGES}
    shared = set.intersection(*map(set, stages.values()))
    lines = [f"# {words['title']}", "", words["intro"], "", f"## {words['shared']}"]
    lines += table([flag for flag in stages["sft"] if flag in shared])
    for name, flags in stages.items():
        lines += ["", f"## {name}", "", words["beside"], *table([flag for flag in flags if flag not in shared])]
    for script in sorted(SCRIPTS.glob("*.py")):
        if script.stem in STAGES:
            continue
        for mode in (None, *MODES.get(script.stem, ())):
            flags = flags_of(parser_of(script, mode))
            lines += ["", f"## {' '.join(filter(None, [script.stem, mode]))}"]
            if script.stem == "inspect_data" and mode is None:
                known = {flag.name for of_stage in stages.values() for flag in of_stage}
                flags = [flag for flag in flags if flag.name not in known]
                lines += ["", words["inspect"]]
            lines += table(flags)
    return "\n".join(lines) + "\n"


def on_files(files: Files, config) -> Files:
    files.append(File.generated(config, "flags.md", content=page(config.theme["language"])))
    return files
