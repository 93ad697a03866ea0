"""Settings as flags, and back."""

import pytest

from hf_recipes.core.arguments.flags import as_flags, as_settings, as_text, output_dir


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), (None, ""), (1e-3, "0.001"), (2e-4, "0.0002"), (5, "5"), (["a", 1], "a 1")]
)
def test_values_are_texts(value, text):
    assert as_text(value) == text


def test_flags_are_settings_again():
    settings = {
        "max_steps": 5,
        "packing": True,
        "columns": ["问", "答"],
        "kwargs": {"名": 1},
        "none": None,
        "empty": [],
    }
    flags = as_flags(settings)
    assert flags == ["--max_steps=5", "--packing=true", "--columns", "问", "答", '--kwargs={"名": 1}', "--empty"]
    assert as_settings(["sft", *flags, "--dry_run"]) == {
        "sft": {
            "max_steps": "5",
            "packing": "true",
            "columns": ["问", "答"],
            "kwargs": '{"名": 1}',
            "empty": True,
            "dry_run": True,
        }
    }


def test_the_folder_that_a_command_writes_to():
    assert output_dir(["merge", "--output_dir=models/a=b"]) == "models/a=b" and output_dir(["inspect"]) is None
