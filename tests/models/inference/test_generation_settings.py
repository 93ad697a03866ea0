"""Generation settings of a base that transformers loads but refuses to save are mended before training."""

import json

import pytest
from transformers import GenerationConfig

from conftest import tiny_model
from hf_recipes.core.errors import UserError
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.generation_settings import make_savable
from hf_recipes.models.loading import load_config


@pytest.mark.parametrize(
    ("settings", "saved", "line"),
    [
        # As Llama-2 and Baichuan were published: meant to be sampled.
        (
            {"temperature": 0.6, "top_p": 0.9},
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
            "temperature, top_p",
        ),
        ({"top_k": 20}, {"do_sample": True, "top_k": 20}, "do_sample becomes true, which top_k needs"),
        ({"do_sample": False, "temperature": 0.6}, {"do_sample": False}, "temperature 0.6 is removed"),
        ({"temperature": 0.0}, {}, "temperature 0.0 is removed"),
        (
            {"temperature": 0.5, "length_penalty": 2.0, "max_new_tokens": 64},
            {"do_sample": True, "temperature": 0.5, "max_new_tokens": 64},
            "length_penalty 2.0 is removed",
        ),
        ({"pad_token_id": -1, "output_scores": True}, {}, "pad_token_id -1 is removed"),
        ({"use_cache": False, "cache_implementation": "static"}, {"use_cache": False}, "cache_implementation"),
        ({"do_sample": True, "temperature": 0.7}, {"do_sample": True, "temperature": 0.7}, ""),
        ({"temperature": 1.0, "custom": 5}, {"temperature": 1.0, "custom": 5}, ""),
    ],
)
def test_settings_that_cannot_be_saved_are_mended(tmp_path, capsys, settings, saved, line):
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    model = tiny_model(64)
    model.generation_config = GenerationConfig.from_pretrained(tmp_path)
    model.generation_config.eos_token_id = [1, 2]  # changed, so that saving is strict
    make_savable(model)
    out = capsys.readouterr().out
    assert line in out and out.count("\n") == bool(line)
    model.generation_config.save_pretrained(tmp_path / "saved")
    found = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert {name: value for name, value in found.items() if name != "transformers_version"} == {
        **saved,
        "eos_token_id": [1, 2],
    }


@pytest.mark.parametrize("text", ["{bad", '{"max_new_tokens": 0}', '{"early_stopping": "x"}', "[1]"])
def test_a_file_that_cannot_be_read_is_named_before_the_weights_are(tmp_path, text):
    tiny_model(64).config.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=r"generation_config.json: .*; mend it, or remove it"):
        load_config(ModelArguments(str(tmp_path)), trust_remote_code=False)
