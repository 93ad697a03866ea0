"""Which older family a config.json is of, from architectures, keys and the tokenizer's files."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_recipes.core.errors import UserError
from hf_recipes.models.families import layouts
from hf_recipes.models.families.layouts import Family

_BY_ARCHITECTURE = {
    "BaiChuanForCausalLM": layouts.BAICHUAN,
    "QWenLMHeadModel": layouts.QWEN,
    "InternLMForCausalLM": layouts.INTERNLM,
    "InternLM2ForCausalLM": layouts.INTERNLM2,
    "MiniCPMForCausalLM": layouts.MINICPM,
}
_CHATGLM = ("ChatGLMModel", "ChatGLMForConditionalGeneration")
# No class of transformers has their positions. With --trust_remote_code they run their own code (`remote_code`).
_ALIBI = (
    "{}, whose alibi positions no class of transformers has, so that it is not converted; it trains by its own code: "
    "--trust_remote_code True --lora_config configs/lora_baichuan.json"
)
_BAICHUAN2_13B, _BAICHUAN_13B = _ALIBI.format("Baichuan2-13B"), _ALIBI.format("Baichuan-13B")
_CHATGLM_6B = (
    "the first ChatGLM-6B, whose two-dimensional positions no class of transformers has, so that it is not converted; "
    "it trains by its own code: --trust_remote_code True --lora_config configs/lora_all_linear.json"
)
BY_REMOTE_CODE = (_BAICHUAN2_13B, _BAICHUAN_13B, _CHATGLM_6B)
_GLM4V = (
    "GLM-4V-9B, whose images no class of transformers reads in this layout; GLM-4-9B, which has text alone, trains "
    "after scripts/convert_checkpoint.py, or as glm-4-9b-hf and glm-4-9b-chat-hf"
)


def detect(config: Mapping[str, Any], name: str) -> Family | str | None:
    """The family of a config.json, or a sentence about one without an equal in transformers, or None for any other.

    Args:
        name: the folder or the Hub id that the configuration is of.
    """
    code = config.get("auto_map") or {}
    named = code.get("AutoModelForCausalLM") or code.get("AutoModel") or ""  # modeling_qwen.QWenLMHeadModel
    architecture = next(iter(config.get("architectures") or [named.rpartition(".")[2]]), None)
    if architecture in _BY_ARCHITECTURE:
        return _BY_ARCHITECTURE[architecture]
    if architecture == "BaichuanForCausalLM":
        if "max_position_embeddings" in config:  # of rotary positions; a 13B has model_max_length alone
            return layouts.BAICHUAN2
        return _BAICHUAN2_13B if "z_loss_weight" in config else _BAICHUAN_13B
    if architecture in _CHATGLM and config.get("model_type") == "chatglm":
        return _chatglm(config, name)
    return None


def _chatglm(config: Mapping[str, Any], name: str) -> Family | str:
    if "position_encoding_2d" in config or "inner_hidden_size" in config:
        return _CHATGLM_6B
    known = _text(name, "tokenizer_config.json") + (code := _text(name, "tokenization_chatglm.py"))
    names = f"{config.get('_name_or_path')} {os.path.basename(os.path.abspath(name))}".lower()
    if "ChatGLM4Tokenizer" in known or "glm-4" in names:
        return _GLM4V if "vision_config" in config else layouts.GLM4
    if "<|user|>" in known or "chatglm3" in names:
        return layouts.CHATGLM3
    if code or "chatglm2" in names:
        return layouts.CHATGLM2
    raise UserError(
        f"{name}: ChatGLM2-6B or ChatGLM3-6B, and neither _name_or_path in config.json nor the tokenizer's files say "
        "which; copy tokenizer_config.json and tokenization_chatglm.py there, or begin the folder's name with chatglm2 "
        "or chatglm3"
    )


def _text(name: str, file: str) -> str:
    path = Path(name) / file
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def refuse_unconverted(name: str, config: Mapping[str, Any] | None = None, *, trust_remote_code: bool = False) -> None:
    """Raise a UserError for a checkpoint of an older family, which says what it is and the command that converts it.

    Args:
        config: its config.json, which is read where it is None and `name` a folder.
    """
    if config is None:
        try:
            config = json.loads(_text(name, "config.json") or "{}")
        except ValueError:  # which transformers reports
            return
    family = detect(config, name) if isinstance(config, dict) else None
    if isinstance(family, Family):
        folder = name.rstrip("/") if os.path.isdir(name) else f"models/{name.rpartition('/')[2]}"
        download = "" if os.path.isdir(name) else "download it (scripts/download.py) and "
        raise UserError(
            f"{name}: {family.name}, in a layout that transformers does not load; {download}convert it: python "
            f"scripts/convert_checkpoint.py --model_name_or_path {folder} --output_dir {folder}-{family.model_type}"
        )
    if family is not None and not (trust_remote_code and family in BY_REMOTE_CODE):
        raise UserError(f"{name}: {family}")
