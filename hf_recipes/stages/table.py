"""All stages by name; rows that fit several are likeliest for the first of them."""

from hf_recipes.stages import grpo, preference, pretrain, reward, sft
from hf_recipes.stages.base import Stage

STAGES: dict[str, Stage] = {
    stage.name: stage for stage in (sft.STAGE, preference.DPO, reward.STAGE, preference.KTO, grpo.STAGE, pretrain.STAGE)
}
