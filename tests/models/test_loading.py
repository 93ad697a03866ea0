"""Models of a configuration alone."""

from transformers import AutoConfig
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from hf_recipes.models.loading import without_weights


def test_a_model_without_weights_is_not_sharded(model_dir, tokenizer):
    """As the one is that tells whether a reward model can be read, under ZeRO's stage 3."""
    sharding = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    for is_reward in (False, True):
        model = without_weights(AutoConfig.from_pretrained(model_dir), tokenizer, is_reward=is_reward)
        assert all(weight.is_meta and not hasattr(weight, "ds_id") for weight in model.parameters())
    assert sharding.is_zero3()
