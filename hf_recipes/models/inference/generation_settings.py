"""A model's generation_config: reading and completing it, and making it savable."""

import contextlib
import copy
import os
import re
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError, say
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.models.arguments import ModelArguments

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def generation_config_of(
    arguments: ModelArguments, config: "PretrainedConfig", cache_dir: str | None = None
) -> "GenerationConfig":
    """What the model will have as its `generation_config`; no weight is read.

    A file that is not JSON is refused, where transformers would take the defaults without a word.
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


def complete_generation_config(**settings: Any) -> "GenerationConfig":
    """Generation settings of which `generate` takes all others from transformers' defaults.

    In any other GenerationConfig it fills those in from the model's (stop tokens, penalties, beams). Changing the
    model's for a while could reach a saved file: PEFT copies the wrapper's settings to the model inside.
    """
    from transformers import GenerationConfig

    class Complete(GenerationConfig):
        def update(self, defaults_only=False, allow_custom_entries=False, **kwargs):
            if allow_custom_entries:  # `generate` passes it with the model's settings only
                return {}
            return super().update(defaults_only=defaults_only, **kwargs)

    return Complete(**settings)


def stop_at_ends(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Add the tokens of `answer_ends` to those at which the model's settings end a generation."""
    if model.can_generate():
        ids = model.generation_config.eos_token_id
        ends = tokenizer.convert_tokens_to_ids(answer_ends(tokenizer))
        model.generation_config.eos_token_id = sorted({*(ids if isinstance(ids, list) else [ids]), *ends} - {None})


def answer_ends(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The tokenizer's eos, and the tokens that end an answer or a call in its chat template."""
    ends = [tokenizer.eos_token] if tokenizer.eos_token else []
    if tokenizer.chat_template:
        with contextlib.suppress(UserError):  # a template that shows no answers
            ends += tokenizer.convert_ids_to_tokens(ChatEncoder(tokenizer).stop_ids)
    return list(dict.fromkeys(ends))


def make_savable(model: "PreTrainedModel") -> None:
    """Mend generation settings that transformers loads and, once a stop token is added to them, refuses to save.

    Where sampling values are set and `do_sample` is not, it becomes true: servers sample with these values. Settings
    that have no effect even then are removed.
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
        changes.append(f"{name} {getattr(config, name)!r} is removed, which has no effect")
        setattr(config, name, None)
    say(f"generation_config.json is saved with other settings, since transformers refuses it: {'; '.join(changes)}")


def _unsavable(config: "GenerationConfig") -> list[str]:
    """The settings for which `config.save_pretrained` raises; it lists them as "- `name`: why"."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        return re.findall(r"^- `(\w+)`", str(error), re.MULTILINE)
    return []
