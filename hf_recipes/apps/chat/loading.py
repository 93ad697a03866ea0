"""Loads a base and its adapters into an engine."""

from collections.abc import Sequence
from dataclasses import replace

from hf_recipes.apps.chat.engine import BATCH_SIZE, MAX_NEW_TOKENS, Engine
from hf_recipes.apps.chat.models import BASE, ChatModel, model_names
from hf_recipes.core.errors import UserError, say
from hf_recipes.evaluation.predict import prompt_budget
from hf_recipes.models.adapters.saved_adapter import load_adapter, read_adapter_config
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.loading import is_reward_model, load_for_inference, open_for_inference
from hf_recipes.models.templates.options import TemplateArguments


def open_engine(
    arguments: ModelArguments,
    adapters: Sequence[str],
    *,
    max_new_tokens: int,
    max_source_length: int | None = None,
    template: TemplateArguments | None = None,
    trust_remote_code: bool = False,
    cache_dir: str | None = None,
    device_map: str | None = None,
    names: Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Engine:
    """The model of `arguments` with all `adapters` (folders), each with the tokenizer that was saved with it.

    The adapters' `names` are by default those of `model_names`.

    A tokenizer without a chat template is replaced by the first adapter's, or else gets the bundled template `plain`.
    """
    biased = next((path for path in adapters if read_adapter_config(path).bias != "none"), None)
    if biased and len(adapters) > 1:
        raise UserError(
            f"--peft_path {biased}: it has biases of the base (bias), which would stay in the answers of the other "
            "adapters; chat with it alone, or merge it"
        )
    source = {"trust_remote_code": trust_remote_code, "cache_dir": cache_dir}
    opened = []
    for path in (*adapters, None):
        model_arguments = replace(arguments, peft_path=path)
        config, tokenizer = open_for_inference(model_arguments, template=template, **source)
        if is_reward_model(config, path):
            flag = f"--peft_path {path}" if path else arguments.model_name_or_path
            raise UserError(f"{flag}: a reward model, which scores answers and generates none; use scripts/score.py")
        opened.append((model_arguments, tokenizer))
    budget = prompt_budget(config, max_new_tokens)
    if max_source_length and budget is not None and max_source_length > budget:
        say(f"--max_source_length {max_source_length}: the context leaves {budget:,} tokens to a prompt")

    tokenizers = [_with_template(each, tokenizer, opened[0][1], source) for each, tokenizer in opened]
    largest = max(tokenizers, key=len)
    model = load_for_inference(arguments, largest, device_map=device_map, **source)
    chat_models = []
    names = names or model_names(adapters)
    for number, (path, name, tokenizer) in enumerate(zip(adapters, names, tokenizers, strict=False)):
        model = load_adapter(model, path, name=f"adapter{number}")  # PEFT's names must not have a dot
        chat_models.append(ChatModel(name, tokenizer, f"adapter{number}"))
    chat_models.append(ChatModel(BASE, tokenizers[-1]))

    def budget_for(new_tokens: int) -> int | None:
        return min(filter(None, (prompt_budget(config, new_tokens), max_source_length)), default=None)

    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = min(MAX_NEW_TOKENS, context // 2 if context else MAX_NEW_TOKENS)
    return Engine(model.eval(), chat_models, budget_for, max(max_new_tokens, longest), batch_size)


def _with_template(arguments: ModelArguments, tokenizer, first, source: dict):
    if tokenizer.chat_template is not None:
        return tokenizer
    if first.chat_template is not None:
        say(f"{arguments.tokenizer_source}: the tokenizer has no chat template; the first adapter's is used")
        return first
    say(f"{arguments.tokenizer_source}: the tokenizer has no chat template; question and answer are plain text")
    return open_for_inference(arguments, template=TemplateArguments("plain"), **source)[1]
