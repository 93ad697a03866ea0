"""Tokens as they are rendered."""

from itertools import groupby

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from conftest import conversation
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.evaluation.reports.report import Document
from hf_recipes.evaluation.reports.terminal import token_text
from hf_recipes.inspection.token_renderer import MAX_TOKENS, TokenRenderer
from hf_recipes.privacy.redactor import Redactor


def labels_of(document: Document) -> list[bool]:
    """One value a token."""
    return [span.labelled for span in document.spans for _ in range(span.tokens)]


def labelled_runs(document: Document) -> list[str]:
    runs = groupby(document.spans, key=lambda span: span.labelled)
    return ["".join(span.text for span in run) for is_labelled, run in runs if is_labelled]


@pytest.mark.parametrize("kind", ["tokenizer", "slow_tokenizer"])
def test_what_is_shown_as_labelled_has_labels(request, kind):
    tokenizer = request.getfixturevalue(kind)
    talk = conversation("龘鑫吗😀？", "是的，𠮷祥\n如意", "再见", "再会！")
    [row] = ChatEncoder(tokenizer).encode([talk])
    document = TokenRenderer(tokenizer).render(row.input_ids, row.labels, "a.jsonl:1")
    assert labels_of(document) == (row.labels != -100).tolist()
    assert labelled_runs(document) == ["是的，𠮷祥\n如意<|im_end|>", "再会！<|im_end|>"]
    assert "".join(span.text for span in document.spans) == tokenizer.decode(row.input_ids)
    assert not any("\ufffd" in span.text for span in document.spans)
    assert len(document.spans) < len(row.input_ids)  # some characters are several tokens


def test_the_first_token_is_predicted_by_none(tokenizer):
    document = TokenRenderer(tokenizer).render([60, 61, 62], [60, 61, 62])
    assert labels_of(document) == [False, True, True]


def test_spaces_that_a_tokenizer_takes_away_at_the_beginning_are_there():
    vocabulary = {"<unk>": 0, "▁Hello": 1, "▁world": 2, "!": 3}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    document = TokenRenderer(tokenizer).render([1, 2, 3], [-100, 2, 3])
    assert [span.text for span in document.spans] == ["Hello", " world", "!"]


def test_a_long_row_keeps_its_beginning_and_its_end(tokenizer):
    ids = tokenizer("ab" * MAX_TOKENS, add_special_tokens=False)["input_ids"]
    assert len(ids) > MAX_TOKENS
    document = TokenRenderer(tokenizer).render(ids, ids)
    [gap] = [span for span in document.spans if span.labelled is None]
    assert gap.tokens == len(ids) - MAX_TOKENS and gap.text == f"… {gap.tokens:,} tokens …"
    assert sum(span.tokens for span in document.spans) == len(ids)


def test_personal_data_is_masked_over_the_tokens_that_hold_it(tokenizer):
    text = "我的电话是13912345678，邮箱a_b@example.com。"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    document = TokenRenderer(tokenizer, Redactor()).render(ids, ids)
    assert "".join(span.text for span in document.spans) == "我的电话是<手机号>，邮箱<邮箱>。"
    assert sum(span.tokens for span in document.spans) == len(ids)


def test_what_could_steer_a_terminal_is_written_out(tokenizer):
    ids = tokenizer("a\x1b[2Jb\u200b\u202e\r\n", add_special_tokens=False)["input_ids"]
    text = "".join(span.text for span in TokenRenderer(tokenizer).render(ids, ids).spans)
    assert text == "a\\u001b[2Jb\\u200b\\u202e\\r\n"


def test_without_colour_what_is_labelled_is_in_brackets(tokenizer):
    question, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("问", "答"))
    ids, labels = question + answer, [-100] * len(question) + answer
    spans = TokenRenderer(tokenizer).render(ids, labels).spans
    assert token_text(spans, in_colour=False).plain == "问⟦答⟧"
    coloured = token_text(spans, in_colour=True)
    assert coloured.plain == "问答"
    assert ["on green" in str(span.style) or "on bright_green" in str(span.style) for span in coloured.spans][-1]
