"""The record of flags is that of today's settings, and the command line that is made of it is the scripts' own."""

from pathlib import Path

import pytest

from conftest import ROOT
from hf_recipes.command import flags
from hf_recipes.command.record_flags import record, text
from hf_recipes.core.arguments.commands import COMMANDS


@pytest.fixture(scope="module")
def recorded():
    return record()


def test_the_record_is_of_the_settings_as_they_are(recorded):
    assert flags.FILE.read_text(encoding="utf-8") == text(recorded), "make flags"


def test_no_default_is_of_the_machine_that_recorded(recorded):
    assert str(Path.home()) not in text(recorded) and str(ROOT) not in text(recorded)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_a_sentence_two_examples_and_the_flags_that_matter_once(name, recorded):
    line = flags.command_line(name, f"hf-recipes {name}")
    known = {*line.fields, "config"}
    main = [flag for group in COMMANDS[name].main_flags.values() for flag in group.split()]
    assert set(main) <= known and len(main) <= 15 and (main or len(known) <= 15)
    short, whole = line.format_help_of(all_flags=False), line.format_help_of(all_flags=True)
    assert short.startswith(" ".join(COMMANDS[name].sentence.split()[:3])) and short.count(f"hf-recipes {name} ") >= 1
    assert len(COMMANDS[name].examples) >= 2
    for flag in main or known:
        assert short.count(f"\n  --{flag} ") == 1
    assert all(whole.count(f"\n  --{flag} ") == 1 for flag in known)
    assert all(flags.flags_of(name)[flag]["help"] for flag in line.fields)


def test_other_versions_than_the_recorded_ones_are_left_to_the_scripts(monkeypatch):
    assert flags.command_line("sft", "sft") is not None
    monkeypatch.setattr(flags, "versions", lambda: {"transformers": "6.0", "trl": "2.0"})
    assert flags.command_line("sft", "sft") is None
