"""Tokens as they are drawn."""

from itertools import groupby

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from conftest import conversation
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.inspection.report import Segment
from hf_recipes.inspection.terminal import drawn
from hf_recipes.inspection.token_view import SHOWN, Pen
from hf_recipes.privacy.redactor import Redactor


def learned_of(segment: Segment) -> list[bool]:
    """One value a token."""
    return [piece.labelled for piece in segment.pieces for _ in range(piece.tokens)]


def learned_runs(segment: Segment) -> list[str]:
    runs = groupby(segment.pieces, key=lambda piece: piece.labelled)
    return ["".join(piece.text for piece in run) for is_learned, run in runs if is_learned]


@pytest.mark.parametrize("kind", ["tokenizer", "slow_tokenizer"])
def test_what_is_shown_as_learned_has_labels(request, kind):
    tokenizer = request.getfixturevalue(kind)
    talk = conversation("龘鑫吗😀？", "是的，𠮷祥\n如意", "再见", "再会！")
    [row] = ChatEncoder(tokenizer).encode([talk])
    segment = Pen(tokenizer).draw(row.input_ids, row.labels, "a.jsonl:1")
    assert learned_of(segment) == (row.labels != -100).tolist()
    assert learned_runs(segment) == ["是的，𠮷祥\n如意<|im_end|>", "再会！<|im_end|>"]
    assert "".join(piece.text for piece in segment.pieces) == tokenizer.decode(row.input_ids)
    assert not any("\ufffd" in piece.text for piece in segment.pieces)
    assert len(segment.pieces) < len(row.input_ids)  # some characters are several tokens


def test_the_first_token_is_predicted_by_none(tokenizer):
    segment = Pen(tokenizer).draw([60, 61, 62], [60, 61, 62])
    assert learned_of(segment) == [False, True, True]


def test_spaces_that_a_tokenizer_takes_away_at_the_beginning_are_there():
    vocabulary = {"<unk>": 0, "▁Hello": 1, "▁world": 2, "!": 3}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    segment = Pen(tokenizer).draw([1, 2, 3], [-100, 2, 3])
    assert [piece.text for piece in segment.pieces] == ["Hello", " world", "!"]


def test_a_long_row_keeps_its_beginning_and_its_end(tokenizer):
    ids = tokenizer("ab" * SHOWN, add_special_tokens=False)["input_ids"]
    assert len(ids) > SHOWN
    segment = Pen(tokenizer).draw(ids, ids)
    [gap] = [piece for piece in segment.pieces if piece.labelled is None]
    assert gap.tokens == len(ids) - SHOWN and gap.text == f"… {gap.tokens:,} tokens …"
    assert sum(piece.tokens for piece in segment.pieces) == len(ids)


def test_personal_data_is_masked_over_the_tokens_that_hold_it(tokenizer):
    text = "我的电话是13912345678，邮箱a_b@example.com。"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    segment = Pen(tokenizer, Redactor()).draw(ids, ids)
    assert "".join(piece.text for piece in segment.pieces) == "我的电话是<手机号>，邮箱<邮箱>。"
    assert sum(piece.tokens for piece in segment.pieces) == len(ids)


def test_what_could_steer_a_terminal_is_written_out(tokenizer):
    ids = tokenizer("a\x1b[2Jb\u200b\u202e\r\n", add_special_tokens=False)["input_ids"]
    text = "".join(piece.text for piece in Pen(tokenizer).draw(ids, ids).pieces)
    assert text == "a\\u001b[2Jb\\u200b\\u202e\\r\n"


def test_without_colour_what_is_learned_is_in_brackets(tokenizer):
    question, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("问", "答"))
    ids, labels = question + answer, [-100] * len(question) + answer
    pieces = Pen(tokenizer).draw(ids, labels).pieces
    assert drawn(pieces, in_colour=False).plain == "问⟦答⟧"
    coloured = drawn(pieces, in_colour=True)
    assert coloured.plain == "问答"
    assert ["on green" in str(span.style) or "on bright_green" in str(span.style) for span in coloured.spans][-1]
