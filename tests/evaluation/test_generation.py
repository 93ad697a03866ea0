import pytest
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from conftest import tiny_model
from hf_recipes.evaluation.generation import generate


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 2.0, "min_new_tokens": 5},
        {"num_beams": 4, "no_repeat_ngram_size": 1},
        {"do_sample": True, "temperature": 5.0},
    ],
)
def test_greedy_is_greedy_whatever_the_models_own_settings(tokenizer, settings, adapted):
    model = tiny_model(len(tokenizer))
    if adapted:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    prompts = [tokenizer(text)["input_ids"] for text in ("你好年龄性别", "药物")]

    def answers():
        return generate(model, tokenizer, prompts, max_new_tokens=20, batch_size=2)

    plain = answers()
    assert all(plain)
    base = model.get_base_model() if adapted else model
    own = GenerationConfig(eos_token_id=2, **settings)
    base.generation_config = own
    assert answers() == plain
    assert base.generation_config is own and model.generation_config is own
