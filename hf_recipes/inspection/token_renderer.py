"""Tokens as text, with those of them that are labelled."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hf_recipes.data.chat.encoder import IGNORED
from hf_recipes.evaluation.reports.phrases import Phrase
from hf_recipes.evaluation.reports.report import Document, TokenSpan, visible
from hf_recipes.privacy.redactor import PLACEHOLDERS, Redactor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 600  # of a document that are rendered; of a longer one its beginning and its end
CHARACTER = 8  # tokens that one character may be split into


class TokenRenderer:
    """Token ids → texts of tokens.

    Args:
        redactor: masks personal data; None leaves it as it is.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", redactor: Redactor | None = None):
        self.tokenizer, self.redactor = tokenizer, redactor

    def mask(self, text: str) -> str:
        return self.redactor.redact(text)[0] if self.redactor else text

    def render(self, ids: Sequence[int], labels: Sequence[int], location: str = "") -> Document:
        """Ids and labels of one length. The first token counts as not labelled, since nothing predicts it."""
        ids, labelled = np.asarray(ids).tolist(), (np.asarray(labels) != IGNORED).tolist()
        labelled[:1] = [False] * len(labelled[:1])
        omitted = len(ids) - MAX_TOKENS
        if omitted <= 0:
            return Document(location, self._section(ids, labelled))
        half = MAX_TOKENS // 2
        gap = TokenSpan(Phrase("… {count:,} tokens …", count=omitted), omitted, None)
        beginning, end = self._section(ids[:half], labelled[:half]), self._section(ids[-half:], labelled[-half:])
        return Document(location, [*beginning, gap, *end])

    def render_documents(
        self, ids: np.ndarray, labels: np.ndarray, positions: np.ndarray, location: str
    ) -> list[Document]:
        """A document for each position 0; the first one has the location."""
        starts = np.flatnonzero(positions[1:] == 0) + 1
        documents = zip(np.split(ids, starts), np.split(labels, starts), strict=True)
        return [self.render(*columns, "" if index else location) for index, columns in enumerate(documents)]

    def _section(self, ids: list[int], labelled: list[bool]) -> list[TokenSpan]:
        spans = list(self._spans(ids, labelled))
        if self.redactor:
            _mask(spans, self.redactor)
        for span in spans:
            span.text = visible(span.text)
        return spans

    def _spans(self, ids: list[int], labelled: list[bool]) -> Iterator[TokenSpan]:
        previous: list[int] = []
        previous_text, start = "", 0
        for end in range(1, len(ids) + 1):
            # Decoded after the previous span, because some tokenizers remove the space that a text begins with.
            text = self._decode(previous + ids[start:end])
            is_prefix = text.startswith(previous_text)
            text = text[len(previous_text) :] if is_prefix else self._decode(ids[start:end])
            may_continue = end < len(ids) and labelled[end] == labelled[start] and end - start < CHARACTER
            if text.endswith("\ufffd") and may_continue:
                continue
            yield TokenSpan(text, end - start, labelled[start])
            previous, start = ids[start:end], end
            previous_text = self._decode(previous)

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _mask(spans: list[TokenSpan], redactor: Redactor) -> None:
    """Put a placeholder into the first token span of each piece of personal data, and nothing into its others."""
    ends = np.cumsum([len(span.text) for span in spans])
    starts = ends - [len(span.text) for span in spans]
    for private in reversed(redactor.find("".join(span.text for span in spans))):
        first, last = np.searchsorted(ends, private.start, "right"), np.searchsorted(starts, private.end, "left") - 1
        before = spans[first].text[: private.start - starts[first]]
        after = spans[last].text[private.end - starts[last] :]
        for span in spans[first : last + 1]:
            span.text = ""
        spans[last].text = after
        placeholder = PLACEHOLDERS[private.kind] + str(private.person or "")
        spans[first].text = before + placeholder + (after if first == last else "")
