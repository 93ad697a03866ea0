"""Tokenizer, chat template, dtype and model: everything that happens before the first batch."""

import copy
import os
import pickle
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError, say
from hf_recipes.models.finite import check_weights
from hf_recipes.models.quantization import limit_cpu_kernel, read_bnb_config

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TEMPLATES = files("hf_recipes.models") / "templates"
# What a template writes literally and a tokenizer should know as one token.
_SPECIAL = re.compile(r"<\|[^|>\s']+\|>|\[gMASK\]|<sop>|<reserved_\d+>|<(?:start|end)_of_turn>")


@dataclass
class ModelArguments:
    """Which model, in which form, and which of its weights are trained."""

    model_name_or_path: str
    model_revision: str = "main"
    dtype: str = "auto"
    attn_implementation: str | None = None
    use_lora: bool = True
    lora_config: str | None = None
    peft_path: str | None = None
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_config: str | None = None

    def __post_init__(self):
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"--dtype {self.dtype}: expected auto, float32, bfloat16 or float16")
        if not self.use_lora and (self.lora_config or self.peft_path):
            raise ValueError("--use_lora False trains all weights; take out --lora_config and --peft_path")
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("--load_in_4bit and --load_in_8bit: choose one")
        if self.quantizes and not self.use_lora:
            flag = "--bnb_config" if self.bnb_config else "--load_in_4bit" if self.load_in_4bit else "--load_in_8bit"
            raise ValueError(f"{flag}: quantized weights cannot be trained; leave --use_lora False out")

    @property
    def quantizes(self) -> bool:
        return bool(self.load_in_4bit or self.load_in_8bit or self.bnb_config)

    @property
    def tokenizer_source(self) -> str:
        """The adapter's folder where a tokenizer was saved with it (its template and tokens), else the model."""
        has_own = self.peft_path and os.path.isfile(os.path.join(self.peft_path, "tokenizer_config.json"))
        return self.peft_path if has_own else self.model_name_or_path


def has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()


def cpu_computes_bf16() -> bool:
    """Whether this processor multiplies in bfloat16 (AVX-512 BF16, AMX or Arm BF16), so that bf16 is the faster."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = set(re.findall(r"^(?:flags|Features)\s*:(.*)$", file.read(), re.MULTILINE)[0].split())
    except (OSError, IndexError):
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def _explain(error: Exception, name: str) -> UserError:
    """A loading error of transformers as one sentence."""
    text = str(error)
    if "trust_remote_code" in text:
        return UserError(f"{name}: this model runs code of its own; read it, then allow it with --trust_remote_code")
    if isinstance(error, pickle.UnpicklingError):
        return UserError(f"{name}: its weights are a pickle with more than tensors in it, which is not loaded")
    if os.path.isdir(name):
        return UserError(f"{name}: no model can be loaded from this folder ({text.splitlines()[0]})")
    if (os.path.sep in name and name.count("/") != 1) or name.startswith((".", "/", "~")):
        return UserError(f"{name}: no such folder")
    return UserError(f"{name}: neither a local folder nor a model to be had from the Hub ({text.splitlines()[0]})")


def load_config(arguments: ModelArguments, trust_remote_code: bool, cache_dir: str | None = None) -> "PretrainedConfig":
    """The model's configuration, before anything heavy is read.

    Raises:
        UserError: no such folder or model, a folder without config.json, remote code that was not allowed, or a
            generation_config.json that cannot be read.
    """
    from transformers import AutoConfig

    name = arguments.model_name_or_path
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "config.json")):
        hint = ""
        if os.path.isfile(os.path.join(name, "adapter_config.json")):
            hint = "; it holds an adapter: give its base as --model_name_or_path and this as --peft_path"
        raise UserError(f"{name}: this folder has no config.json{hint}")
    try:
        config = AutoConfig.from_pretrained(
            name, revision=arguments.model_revision, trust_remote_code=trust_remote_code, cache_dir=cache_dir
        )
    except Exception as error:  # a configuration can be wrong in any way, and nothing else happens here
        raise _explain(error, name) from None
    own_generation_config(arguments, config, cache_dir)
    return config


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


def load_tokenizer(
    name: str,
    chat_template: str | None = None,
    *,
    needs_template: bool = True,
    or_plain: bool = False,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> tuple["PreTrainedTokenizerBase", list[str]]:
    """A tokenizer that can render conversations and pad.

    `chat_template` is a bundled name (a file in `TEMPLATES`) or a path to a jinja file; None keeps the tokenizer's own;
    without `needs_template` it may have none, and with `or_plain` one that has none gets the bundled plain text.
    Where the tokenizer puts a BOS before every text and the template does not, the template gets one, so that
    training and any later use of the saved tokenizer see exactly one.

    Returns:
        The tokenizer and the special tokens that were added to it because the chosen template writes them.

    Raises:
        UserError: nothing to load, a tokenizer without a vocabulary, no such template, one that fails, or none at all.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **kwargs)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _explain(error, name) from None
    # Without its files, transformers makes up an empty tokenizer of the model's kind.
    if not set(tokenizer("a问", add_special_tokens=False)["input_ids"]) - {tokenizer.unk_token_id}:
        raise UserError(f"{name}: the tokenizer knows no text (its vocabulary files are missing); copy them there")
    added: list[str] = []
    if or_plain and chat_template is None and tokenizer.chat_template is None:
        chat_template = "plain"
        say(f"{name}: the tokenizer has no chat template; question and answer follow each other as plain text")
    if chat_template is not None:
        tokenizer.chat_template, own = _read_template(chat_template)
        vocabulary = tokenizer.get_vocab()
        added = [token for token in own if token not in vocabulary]
        tokenizer.add_special_tokens({"additional_special_tokens": added}, replace_extra_special_tokens=False)
        end = "<|im_end|>"
        if end in own and tokenizer.eos_token != end:
            tokenizer.eos_token = end  # what the model learns to end a turn with is what generation stops at
            say(f"{name}: turns end with {end}; it becomes the tokenizer's eos token")
        if added:
            say(f"{name}: added the template's special tokens {' '.join(added)}; their embeddings are trained")
    elif tokenizer.chat_template is None and needs_template:
        raise UserError(
            f"{name}: the tokenizer has no chat template; choose one with --chat_template {' | '.join(_bundled())} "
            "or a jinja file"
        )
    try:
        if tokenizer.chat_template is not None:
            tokenizer.apply_chat_template([{"role": "user", "content": "问"}], tokenize=False)
    except Exception as error:  # a template computes what it likes
        owner = f"{name}: its chat template" if chat_template is None else f"--chat_template {chat_template}: it"
        raise UserError(f"{owner} cannot render a question ({type(error).__name__}: {error})") from None
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(f"{name}: the tokenizer has neither a pad nor an eos token")
        tokenizer.pad_token = tokenizer.eos_token
    _ensure_one_bos(tokenizer)
    return tokenizer, added


def _bundled() -> list[str]:
    return sorted(path.name.removesuffix(".jinja") for path in TEMPLATES.iterdir() if path.name.endswith(".jinja"))


def _read_template(name: str) -> tuple[str, list[str]]:
    """The template's text and the special tokens that it writes."""
    if name in _bundled():
        text = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
        if name == "glm":  # built from the roles' names
            return text, ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"]
    elif os.path.isfile(name):
        try:
            with open(name, encoding="utf-8") as file:
                text = file.read()
        except UnicodeDecodeError:
            raise UserError(f"--chat_template {name}: not UTF-8 text") from None
    else:
        raise UserError(f"--chat_template {name}: neither a file nor one of {', '.join(_bundled())}")
    return text, list(dict.fromkeys(_SPECIAL.findall(text)))


def _ensure_one_bos(tokenizer: "PreTrainedTokenizerBase") -> None:
    ids = tokenizer("a")["input_ids"]
    if tokenizer.chat_template is None or tokenizer.bos_token is None or not ids or ids[0] != tokenizer.bos_token_id:
        return
    if "bos_token" not in tokenizer.chat_template and tokenizer.bos_token not in tokenizer.chat_template:
        tokenizer.chat_template = "{{- bos_token }}" + tokenizer.chat_template


def weight_dtype(arguments: ModelArguments, *, trains_all: bool, bf16: bool) -> "torch.dtype":
    """What the base model's weights are loaded in: see `load_model`."""
    import torch

    if arguments.dtype != "auto":
        return getattr(torch, arguments.dtype)
    return torch.bfloat16 if bf16 and not trains_all else torch.float32


def load_model(
    arguments: ModelArguments,
    *,
    trains_all: bool,
    bf16: bool,
    trust_remote_code: bool = False,
    is_reward: bool = False,
    may_lack: Collection[str] = (),
    **kwargs: Any,
) -> "PreTrainedModel":
    """The causal language model, quantized where `arguments` ask for it; for training as for inference.

    With `is_reward`, the sequence classifier that scores conversations instead; weights of the names in `may_lack`
    are drawn where the files have none.

    With ``--dtype auto``, frozen weights are in bfloat16 where the run computes in it; weights that are trained are
    in float32, because an update of 1e-5 is lost in bfloat16's eight bits.

    Raises:
        UserError: the folder or Hub id holds no causal language model, lacks some of its weights, is quantized already
            in another way, holds NaN or infinities, or `arguments.bnb_config` cannot be used.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    name = arguments.model_name_or_path
    kind = AutoModelForSequenceClassification if is_reward else AutoModelForCausalLM
    if may_lack:
        kwargs["num_labels"] = 1
    quantization = read_bnb_config(
        arguments.bnb_config,
        load_in_4bit=arguments.load_in_4bit,
        load_in_8bit=arguments.load_in_8bit,
        compute_dtype="bfloat16" if bf16 else "float32",
    )
    if quantization is not None:
        kwargs["quantization_config"] = quantization
    dtype = weight_dtype(arguments, trains_all=trains_all, bf16=bf16)
    if arguments.attn_implementation:
        kwargs["attn_implementation"] = arguments.attn_implementation
    try:
        with _without_report() if may_lack else nullcontext():
            model, report = kind.from_pretrained(
                name,
                revision=arguments.model_revision,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **kwargs,
            )
    except (
        OSError,
        ValueError,
        KeyError,
        ImportError,
        RuntimeError,
        SafetensorError,
        pickle.UnpicklingError,
    ) as error:
        raise _explain(error, name) from None
    if missing := sorted(set(report["missing_keys"]) - set(may_lack)):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"{name}: its files lack weights of {type(model).__name__} ({', '.join(missing[:3])}{more}), which would "
            f"stay random; give a complete checkpoint of a {'reward' if is_reward else 'causal language'} model"
        )
    if not is_reward and "score.weight" in report["unexpected_keys"]:
        raise UserError(f"{name}: a reward model, which has a score head; give a causal language model")
    check_weights(model, arguments, kwargs.get("cache_dir"))
    if quantization is not None:
        limit_cpu_kernel(model, inference=True)
    # With it, a mixture of experts cannot generate from prompts of several lengths; trainers ask for the logits of the
    # routers at each of their own forward passes.
    if getattr(model.config.get_text_config(), "output_router_logits", False):
        model.config.get_text_config().output_router_logits = False
    # Families that can be both (BERT) say so in their configuration; some that cannot say it too (GPT-NeoX).
    if not is_reward and getattr(model.config, "is_decoder", True) is False and _sees_later_tokens(model):
        raise UserError(f"{name}: {model.config.model_type} attends to later tokens; it is no causal language model")
    return model


@contextmanager
def without_deepspeed() -> Iterator[None]:
    """While this lasts, transformers parts no weights of models that are built, as it does under ZeRO stage 3."""
    from transformers.integrations import deepspeed

    reference = deepspeed._hf_deepspeed_config_weak_ref
    own = reference and reference()
    if own is None:
        yield
        return
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(own)


@contextmanager
def _without_report() -> Iterator[None]:
    """transformers warns of a head that the files lack, and of one that they have and the model does not."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _sees_later_tokens(model: "PreTrainedModel") -> bool:
    import torch

    ids = torch.arange(6, device=model.device)[None]
    other = ids.clone()
    other[0, -1] = 7
    with torch.no_grad(), _gathered(model):
        one, two = (model.eval()(tokens).logits[0, :-1].float() for tokens in (ids, other))
    return not torch.equal(one, two)


def fit_embeddings(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Grow the embeddings where the tokenizer has more tokens than they have rows."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer))
        say(f"embeddings grown from {rows:,} to {len(tokenizer):,} rows")


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


@contextmanager
def _gathered(model: "PreTrainedModel") -> Iterator[None]:
    """Before DeepSpeed has taken over a model of ZeRO's stage 3: each module's weights whole while it runs."""
    hooks = []
    for module in model.modules():
        own = [parameter for parameter in module.parameters(recurse=False) if hasattr(parameter, "ds_id")]
        if own:
            hooks.append(module.register_forward_pre_hook(lambda module, inputs, own=own: own[0].all_gather(own)))
            hooks.append(module.register_forward_hook(lambda module, inputs, out, own=own: own[0].partition(own)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def packing_leaks(model_type: str, flag: str = "--packing", instead: str = "leave --packing out") -> UserError:
    return UserError(
        f"{flag}: {model_type} does not restart its attention at each packed row (position biases or recurrence), "
        f"so rows would leak into each other; {instead}"
    )


def joins_rows(attention: str | None) -> bool:
    """Whether this implementation of attention takes documents of any lengths joined into one row."""
    return "flash" in (attention or "")


def keeps_packed_rows_apart(model: "PreTrainedModel") -> bool:
    """Whether attention restarts where `position_ids` do, tried on the model itself.

    A row's logits are taken alone, behind another row with positions that restart, and behind it with positions that
    run on (where it does see the other row). Families with position biases (bloom, some falcons) or recurrent layers
    come out of the second as far off as out of the third; the others differ by rounding.
    """
    import torch

    size = model.get_input_embeddings().num_embeddings
    draw = torch.Generator().manual_seed(0)
    one, two = (torch.randint(size, (1, length), generator=draw).to(model.device) for length in (7, 9))
    both = torch.cat([one, two], 1)
    restarting = torch.cat([torch.arange(7), torch.arange(9)])[None].to(model.device)
    was_training = model.training
    model.eval()
    with torch.no_grad(), _gathered(model):
        alone = model(two, use_cache=False).logits[0].float()
        mixed = model(both, use_cache=False).logits[0, 7:].float()
        try:
            packed = model(both, position_ids=restarting, use_cache=False).logits[0, 7:].float()
        except TypeError:  # no position_ids at all
            packed = mixed
    model.train(was_training)
    return bool((packed - alone).norm() < 0.3 * (mixed - alone).norm())
