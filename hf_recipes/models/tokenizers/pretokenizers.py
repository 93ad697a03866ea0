"""llama.cpp's pre-tokenizers, which a GGUF file names (``tokenizer.ggml.pre``), as `tokenizers` builds them.

Names and expressions are those of llama.cpp's src/llama-vocab.cpp; where it has one in a comment as the model was
published with it, that one. Each expression splits what the ones before it did not.
"""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_recipes.core.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

_END = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACE = r"\s+(?!\S)|\s+"
_LINES = rf"\s*[\r\n]+|{_SPACE}"
_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACE}"
_LLAMA3 = rf"{_END}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_LINES}"
_HAN = r"[一-龥\u0800-一\uac00-\ud7ff]+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_PATH_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"

_LLAMA_NAMES = "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"

# Names with the same expressions are in one key. `named_like` returns the first that fits.
_FAMILIES: dict[str, tuple[str, ...]] = {
    "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert mpt olmo jais trillion "
    "granite-docling exaone4": (_GPT2,),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": (r"\p{N}", _GPT2),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": (
        rf"{_END}|{_WORD}|\p{{N}}|{_SIGNS}|{_LINES}",
    ),
    "dbrx smaug-bpe glm4 chatglm-bpe": (_LLAMA3,),
    _LLAMA_NAMES: (_LLAMA3,),
    "qwen35": (rf"{_END}|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}",),
    "deepseek-llm": (
        r"[\r\n]",
        r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
        r"\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
        r"\s+$",
        _HAN,
        r"\p{N}+",
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}"),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": (
        r"\p{N}{1,3}",
        r"[一-龥\u3040-\u309f\u30a0-\u30ff]+",
        r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _LINES,
    ),
    "minicpm5": (r"\p{N}{1,3}", rf"{_END}|{_WORD}|\p{{N}}+|{_SIGNS}|{_LINES}"),
    "tekken": (rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_PATH_SIGNS}|{_LINES}",),
    "gpt-4o llama4 kanana2 talkie minimax-m2": (
        rf"{_LEAD}{_UPPER}*{_LOWER}+{_END}?|{_LEAD}{_UPPER}+{_LOWER}*{_END}?|\p{{N}}{{1,3}}|{_PATH_SIGNS}|{_LINES}",
    ),
    "bailingmoe bailingmoe2 llada-moe": (rf"'(?i:[sdmt]|ll|ve|re)|{_WORD}|\p{{N}}|{_SIGNS}|\s*[\r\n]|{_SPACE}",),
    "seed-coder": (rf"{_END}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}",),
    "falcon": (r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]"),
    "bloom poro-chat gpt3-finnish": (_BLOOM,),
    "viking": (_BLOOM, r"\p{N}"),
    "default": (r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}
PATTERNS = {name: patterns for names, patterns in _FAMILIES.items() for name in names.split()}
# With these, a pre-token that is in the vocabulary is one token, whatever the merges (`ignore_merges`), and texts begin
# with BOS unless the file has add_bos_token.
WHOLE_TOKENS = {*_LLAMA_NAMES.split(), "minicpm5", "tekken"}
ADDS_BOS = WHOLE_TOKENS - {"minicpm5"}


def pre_tokenizer(name: str) -> "PreTokenizer":
    """The byte-level pre-tokenizer of that name."""
    from tokenizers import Regex, pre_tokenizers

    if name not in PATTERNS:
        raise UserError(
            f"its pre-tokenizer {name!r} (tokenizer.ggml.pre) is not known here, and any other splits texts "
            f"differently; known are {', '.join(PATTERNS)}"
        )
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in PATTERNS[name]]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def named_like(tokenizer: "Tokenizer") -> str | None:
    """The name of the pre-tokenizer that splits `mixed_texts` as this byte-level BPE does; None where there is none."""
    splitter, texts = tokenizer.pre_tokenizer, mixed_texts()
    if splitter is None or type(tokenizer.model).__name__ != "BPE":
        return None
    if type(tokenizer.normalizer).__name__ not in ("NoneType", "NFC"):  # llama.cpp does not normalize
        return None
    for name in (names.split()[0] for names in _FAMILIES):
        if (name in WHOLE_TOKENS) == tokenizer.model.ignore_merges:
            other = pre_tokenizer(name)
            if all(splitter.pre_tokenize_str(text) == other.pre_tokenize_str(text) for text in texts):
                return name
    return None


# In NFC: llama.cpp does not normalize, and Qwen's tokenizers would compose an accent first.
_FRAGMENTS = (
    *("今天天气很好，我们去公园散步。", "患者年龄在十八岁以上", "「繁體」与《简体》", "第3章：机器学习", "；……——"),
    *("。", "，", "、", "！", " The quick brown fox", "Hello", " world", "don't", " I'LL", "we've"),
    *(" state-of-the-art", "HTTPServer", "iPhone", "0", "1", "12", "123", "1234567", " 42", "3.14", "2024年12月31日"),
    *("1,234,567", "１２３", "½", "第Ⅷ卷", "0x1F", "٣"),
    *("def f(x):\n    return x + 1\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n", '<a href="/b?c=1&d">'),
    *("SELECT * FROM t WHERE id=42;", '{"k": [1, null]}', "x_1 != y**2", "http://a.b/c/", "```", "#include <a.h>\r\n"),
    *(" ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", " \n", "\n ", "\r\n", "\u3000", "\u00a0", "        "),
    *("'", '"', "...", "!?", "$", "->", "==", "%", "(", ")", "[", "]", "~", "^", "|", "`", "€", "™", "→", "±"),
    *("😀", "🚀🚀", "👨‍👩‍👧", "🇨🇳", "🤷🏽‍♂️", "❤️", "Привет, мир", "こんにちは世界", "カタカナ", "안녕하세요"),
    *("naïve café", "Straße", "สวัสดี", "مرحبا", "हिन्दी", "Ελλάδα", "𠮷"),
)
_FIXED = (
    *("\n\n1", "1\n\n1", " 1", "  a", "a  b", "a \n b", " ", "\n", "你好\n\n1. 第一", "a\r\n\r\n2"),
    "I'm 25 years old.",
)


def mixed_texts(tokens: Sequence[str] = ()) -> list[str]:
    """500 texts, always the same, of Chinese, English, other scripts, digits, code, white space, emoji and the
    special `tokens`."""
    chance = random.Random(0)
    fragments = [*_FRAGMENTS, *(token for token in tokens for _ in range(max(1, 20 // len(tokens))))]
    made = ("".join(chance.choices(fragments, k=chance.randint(1, 12))) for _ in range(500 - len(_FIXED)))
    return [*_FIXED, *made]
