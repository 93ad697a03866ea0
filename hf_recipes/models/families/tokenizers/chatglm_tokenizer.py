"""The tokenizer of the first ChatGLM-6B (ice_text.model), from its file alone, and the form of its conversations."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.core.errors import UserError, say
from hf_recipes.models.families.tokenizers.fast_tokenizer import Vocabulary, add_special, compare
from hf_recipes.models.families.tokenizers.from_sentencepiece import as_full_tokenizer, read_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FILE = "ice_text.model"
JOINED = 300  # texts of random pieces in the comparison
SPECIAL = ("<pad>", "</s>", "[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
# White space has pieces of its own; the longest first.
BLANKS = {"\n": "<n>", "\t": "<|tab|>"} | {" " * count: f"<|blank_{count}|>" for count in range(80, 1, -1)}
# Rounds have numbers where there are several; what is generated stands behind [gMASK] <sop>, and nothing else does.
TEMPLATE = """{%- set turns = namespace(round=0) %}
{%- set several = messages | selectattr('role', 'equalto', 'user') | list | length > 1 %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- message.content + '\\n' }}
    {%- elif message.role == 'user' and several %}
        {{- '[Round ' + turns.round | string + ']\\n问：' + message.content + '\\n答：' }}
        {%- set turns.round = turns.round + 1 %}
    {%- elif message.role == 'user' %}
        {{- message.content }}
    {%- elif message.role == 'assistant' and not message.tool_calls and loop.last %}
        {{- '[gMASK]<sop>' + message.content + eos_token }}
    {%- elif message.role == 'assistant' and not message.tool_calls %}
        {{- message.content + '\\n' }}
    {%- else %}
        {{- raise_exception('ChatGLM-6B has no form for ' + message.role + ' turns with tools') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[gMASK]<sop>' }}
{%- endif %}
"""


def load(name: str, path: Path | None, settings: dict[str, Any]) -> "PreTrainedTokenizerFast":
    """A fast tokenizer with the ids of the file at `path`.

    Args:
        settings: of tokenizer_config.json.
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import decoders, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    if settings.get("num_image_tokens", 20_000):
        raise UserError(
            f"{name}: the first release of ChatGLM-6B, with tokens for images before those for text; take a later one, "
            "whose tokenizer_config.json has num_image_tokens 0 (130,528 rows of embeddings)"
        )
    model = read_model(path) if path else None
    if model is None:
        raise UserError(f"{name}: no {FILE}, in which ChatGLM-6B has its tokens, or another file; download it again")
    processor = SentencePieceProcessor(model_file=str(path))
    names = [piece.piece for piece in model.pieces]
    add_special(model, path, {names.index(token): token for token in SPECIAL if token in names})
    backend = as_full_tokenizer(model)
    blanks = {text: token for text, token in BLANKS.items() if token in names}
    replaced = [normalizers.Replace(text, token) for text, token in blanks.items()]
    backend.normalizer = normalizers.Sequence([*replaced, backend.normalizer])
    restored = [decoders.Replace(token, text) for text, token in blanks.items()]
    backend.decoder = decoders.Sequence([backend.decoder, *restored])
    begins = [(token, names.index(token)) for token in ("[gMASK]", "<sop>")]
    backend.post_processor = processors.TemplateProcessing(
        "$A [gMASK] <sop>", "$A [gMASK] <sop> $B <eop>", [*begins, ("<eop>", names.index("<eop>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        name_or_path=name,
        bos_token="<sop>",
        eos_token="<eop>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="[MASK]",
    )

    def pieces(text: str) -> str:
        for blank, token in blanks.items():
            text = text.replace(blank, token)
        return text

    def decode(ids: list[int]) -> str:
        text = processor.decode(ids)
        for blank, token in blanks.items():
            text = text.replace(token, blank)
        return text

    texts = [name.replace("▁", " ") for name in names]
    original = Vocabulary(lambda batch: processor.encode([pieces(text) for text in batch]), decode, texts)
    differing, count = compare(tokenizer, original, JOINED, alone=False)
    differing = [text for text in differing if text not in blanks]  # which get no prefix, see `as_full_tokenizer`
    if differing:
        raise UserError(
            f"{path}: a fast tokenizer gives {len(differing):,} of {count:,} texts other ids ({differing[0][:40]!r}), "
            "and that of its code does not run on transformers 5; ChatGLM2-6B and ChatGLM3-6B train after conversion"
        )
    say(f"{name}: a fast tokenizer from {FILE}; 0 of {count:,} texts differ from the original one's ids")
    return tokenizer
