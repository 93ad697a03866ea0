"""A model's generation_config: read, completed, and made such that it can be saved."""

import copy
import os
import re
from typing import TYPE_CHECKING

from hf_recipes.core.errors import UserError, say
from hf_recipes.models.arguments import ModelArguments

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def own_generation_config(
    arguments: ModelArguments, config: "PretrainedConfig", cache_dir: str | None = None
) -> "GenerationConfig":
    """What the model will have as its `generation_config`; no weight is read.

    Raises:
        UserError: its file is not JSON (transformers would go on without it), or holds what transformers refuses.
    """
    from transformers import GenerationConfig

    name = arguments.model_name_or_path
    path = os.path.join(name, "generation_config.json")
    try:
        return GenerationConfig.from_pretrained(name, revision=arguments.model_revision, cache_dir=cache_dir)
    except OSError:
        if os.path.isfile(path):
            raise UserError(f"{path}: not a JSON object; mend it, or remove it") from None
        return GenerationConfig.from_model_config(config)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())[:300]}; mend it, or remove it") from None


def stop_at_eos(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Add the tokenizer's eos token to those at which the model's own settings end a generation."""
    if model.can_generate():
        own = model.generation_config.eos_token_id
        stops = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}
        model.generation_config.eos_token_id = sorted(stops)


def make_savable(model: "PreTrainedModel") -> None:
    """Mend generation settings that transformers loads and, once a stop token is added to them, refuses to save.

    Sampling values without a word on `do_sample` are what the model is meant to be sampled with (servers take them as
    they are): it becomes true. What has no effect in any case is taken out.
    """
    if not model.can_generate() or not (unused := _unsavable(config := model.generation_config)):
        return
    sampled = copy.deepcopy(config)
    sampled.do_sample, changes = True, []
    left = _unsavable(sampled)
    if config.do_sample is None and config.temperature != 0 and (used := [n for n in unused if n not in left]):
        config.do_sample, unused = True, left
        changes.append(f"do_sample becomes true, which {', '.join(used)} need{'s' * (len(used) == 1)}")
    for name in unused:
        changes.append(f"{name} {getattr(config, name)!r} is taken out, which has no effect")
        setattr(config, name, None)
    say(f"generation_config.json is saved with other settings, since transformers refuses it: {'; '.join(changes)}")


def _unsavable(config: "GenerationConfig") -> list[str]:
    """The settings for which `config.save_pretrained` raises; it lists them as "- `name`: why"."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        return re.findall(r"^- `(\w+)`", str(error), re.MULTILINE)
    return []
