"""All stages by name; rows that fit several are likeliest for the first of them."""

from hf_recipes.stages import dpo, grpo, kto, orpo, pretrain, reward, sft
from hf_recipes.stages.base import Stage

_ALL = (sft.STAGE, dpo.STAGE, orpo.STAGE, reward.STAGE, kto.STAGE, grpo.STAGE, pretrain.STAGE)
STAGES: dict[str, Stage] = {stage.name: stage for stage in _ALL}
