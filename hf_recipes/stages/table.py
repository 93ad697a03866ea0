"""All stages by name; rows that fit several are likeliest for the first of them."""

from hf_recipes.stages import grpo, orpo, preference, pretrain, reward, sft
from hf_recipes.stages.base import Stage

_ALL = (sft.STAGE, preference.DPO, orpo.STAGE, reward.STAGE, preference.KTO, grpo.STAGE, pretrain.STAGE)
STAGES: dict[str, Stage] = {stage.name: stage for stage in _ALL}
