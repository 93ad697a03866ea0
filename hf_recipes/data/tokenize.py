"""Conversations → `input_ids` and unshifted `labels`: the one place where the library decides what carries loss.

Loss is on what the model must say after the generation prompt: the assistant's turn and its end-of-turn token. The
conversation is rendered by the tokenizer's own chat template and tokenized as one text, so the ids are those of the
rendered text; where each turn lies in it is learned from a second rendering with marks around the contents.
"""

import gc
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Json, List, Value
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from hf_recipes.data import alignment
from hf_recipes.data.alignment import Aligned, ByteAligned, OffsetAligned, PrefixAligned, byte_lengths
from hf_recipes.data.examples import fingerprint
from hf_recipes.data.ledger import KEPT, fate
from hf_recipes.data.schemas import Message
from hf_recipes.errors import UserError

IGNORED = -100
# Unicode noncharacters, which no text holds: start and end of an assistant's content, and of any other turn's.
MARKS = "\ufdd0\ufdd1\ufdd2\ufdd3"
_MARK = re.compile(f"([{MARKS}])")


@dataclass
class Turn:
    """Where one turn lies in the rendered text; [start, end) is its content, in characters."""

    is_assistant: bool
    start: int
    end: int


@dataclass
class Rendered:
    """A conversation as text. `learned` holds, for each assistant turn, the characters that carry loss."""

    text: str
    turns: list[Turn] = field(default_factory=list)
    learned: list[tuple[int, int]] = field(default_factory=list)
    problem: str | None = None


@dataclass
class Encoded:
    """One example: `input_ids` and `labels` of one length; the last answer begins at `prompt_length`."""

    input_ids: np.ndarray
    labels: np.ndarray
    prompt_length: int
    fate: str = KEPT


class ChatEncoder:
    """Encodes conversations for one tokenizer and one set of budgets.

    Args:
        tokenizer: with a chat template; fast or slow.
        train_on: ``"all"`` assistant turns carry loss, or only the ``"last"``.
        max_source_length: tokens before the last answer. Over it, the oldest exchanges go first, then text of the
            last user turn, on `truncation_side`; the template's own tokens and the system turn stay.
        max_target_length: tokens of the last answer. Over it, its end is cut; the end-of-turn token stays.
        max_length: tokens in all. Over it, the prompt gives way down to half of it, then the answer.
        keep_text: also return the columns `question` and `reference` (last user and assistant turn), for evaluation.

    Raises:
        UserError: the template cannot show a question and an answer, or there is no token to end a turn with.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        train_on: str = "all",
        max_source_length: int | None = None,
        max_target_length: int | None = None,
        max_length: int | None = None,
        truncation_side: str = "left",
        keep_text: bool = False,
    ):
        if tokenizer.chat_template is None:
            raise UserError("the tokenizer has no chat template; name one with --chat_template (chatml, …)")
        self.tokenizer = tokenizer
        self.train_on = train_on
        self.max_source_length = max_source_length or sys.maxsize
        self.max_target_length = max_target_length or sys.maxsize
        self.max_length = max_length or sys.maxsize
        self.truncation_side = truncation_side
        self.keep_text = keep_text
        self._learn_template()

    def _learn_template(self) -> None:
        """Find the generation prompt and the end-of-turn token from how the template renders a short exchange."""
        special = {*self.tokenizer.all_special_tokens, *(str(t) for t in self.tokenizer.added_tokens_decoder.values())}
        names = sorted((token for token in special if token.strip()), key=len, reverse=True)
        self._special = re.compile(r"\s*(" + "|".join(map(re.escape, names)) + ")") if names else re.compile(r"(?!)")
        self.generation_prompt = self.end_of_turn = ""
        self._append_end = False
        self._byte_lengths = byte_lengths(self.tokenizer)
        user, assistant = {"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}
        try:
            bare = self._apply([user])
            opened = self._apply([user], add_generation_prompt=True)
        except (TemplateError, TypeError) as error:
            raise UserError(f"the chat template cannot render a question: {error}") from None
        self.generation_prompt = opened[len(bare) :] if opened.startswith(bare) else ""
        rendered = self.render([user, assistant])
        if rendered.problem:
            raise UserError(f"the chat template cannot be used for training: {rendered.problem}")
        found = self._special.match(rendered.text, rendered.turns[-1].end)
        if found:
            self.end_of_turn = found[1]
        elif self.tokenizer.eos_token is None:
            raise UserError("neither the chat template nor the tokenizer has a token that ends a turn (eos_token)")
        else:
            self.end_of_turn, self._append_end = self.tokenizer.eos_token, True

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes the ids or labels: vocabulary, template, budgets, this code."""
        tokenizer = self.tokenizer
        state = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
        settings = [self.train_on, self.max_source_length, self.max_target_length, self.max_length]
        settings += [self.truncation_side, self.keep_text, tokenizer.chat_template, str(tokenizer.special_tokens_map)]
        return fingerprint(type(tokenizer).__name__, state, settings, code=(sys.modules[__name__], alignment))

    def _apply(self, conversation: list, tools: list | None = None, add_generation_prompt: bool = False):
        """The rendered text of one conversation, or the texts of a list of them."""
        return self.tokenizer.apply_chat_template(
            conversation, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def render(self, messages: list[Message], tools: list | None = None) -> Rendered:
        return self._render_all([messages], [tools])[0]

    def _render_all(self, conversations: list[list[Message]], tools: Sequence[list | None]) -> list[Rendered]:
        marked = [[_mark(message) for message in messages] for messages in conversations]
        if not any(tools):
            try:
                pairs = zip(self._apply(conversations), self._apply(marked), strict=True)
                return [self._locate(*p, messages) for p, messages in zip(pairs, conversations, strict=True)]
            except (TemplateError, TypeError):
                pass  # some row is refused: render one by one to learn which
        rendered = []
        for plain, other, own_tools in zip(conversations, marked, tools, strict=True):
            try:
                text = self._apply(plain, own_tools)
                row = self._locate(text, self._apply(other, own_tools), plain)
                if own_tools and text == self._apply(plain):
                    row.problem = "the chat template has no place for tools (--chat_template chatml has)"
            except (TemplateError, TypeError) as error:
                row = Rendered("", problem=f"the chat template refuses it: {error}")
            rendered.append(row)
        return rendered

    def _locate(self, text: str, marked: str, messages: list[Message]) -> Rendered:
        """Read the marks: where each turn's content is in `text`, and from where to where it is learned."""
        pieces, position, starts, turns = _MARK.split(marked), 0, {}, []
        for index, piece in enumerate(pieces):
            if index % 2 == 0:
                position += len(piece)
                continue
            kind, is_end = divmod(MARKS.index(piece), 2)
            if is_end:
                turns.append(Turn(kind == 0, starts.pop(kind, -1), position))
            else:
                starts[kind] = position
        if len(text) != position or "".join(pieces[::2]) != text:
            return Rendered(text, problem="the chat template changes a turn's text")
        expected = [message["role"] == "assistant" for message in messages]
        if [turn.is_assistant for turn in turns] != expected or any(t.start < 0 and not t.is_assistant for t in turns):
            return Rendered(text, problem=f"the chat template does not show every turn ({_roles(messages, turns)})")
        learned, before = [], 0
        for turn, message, following in zip(turns, messages, [*turns[1:], None], strict=True):
            if turn.is_assistant:
                limit = len(text) if following is None else max(following.start, turn.end)
                opened = text.find(self.generation_prompt, before, turn.end) if self.generation_prompt else -1
                is_call = "tool_calls" in message
                start = opened + len(self.generation_prompt) if opened >= 0 else -1 if is_call else turn.start
                if start < 0:
                    return Rendered(text, problem="the start of an answer is not to be found in the rendered text")
                learned.append((start, self._end_of(text, turn.end, limit, is_call)))
            before = turn.end
        if self._append_end and learned:
            text += self.end_of_turn
            learned[-1] = (learned[-1][0], len(text))
        return Rendered(text, turns, learned)

    def _end_of(self, text: str, end: int, limit: int, is_call: bool) -> int:
        if is_call and self.end_of_turn:  # the mark stands inside the call
            found = text.find(self.end_of_turn, end, limit)
            return found + len(self.end_of_turn) if found >= 0 else limit
        found = self._special.match(text, end, limit)
        return found.end() if found else end

    def encode(self, conversations: list[list[Message]], tools: Sequence[list | None] | None = None) -> list[Encoded]:
        """Encode a batch; a row that cannot be used comes back empty, with its fate."""
        tools = tools or [None] * len(conversations)
        rendered = self._render_all(conversations, tools)
        aligned = self._align([row.text for row in rendered])
        return [self._finish(*row) for row in zip(rendered, aligned, conversations, tools, strict=True)]

    def _align(self, texts: list[str]) -> list[Aligned]:
        if not self.tokenizer.is_fast:
            return [PrefixAligned(text, self.tokenizer) for text in texts]
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        if self._byte_lengths is None:
            encodings = backend.encode_batch(texts, add_special_tokens=False)
            return [OffsetAligned(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]
        aligned: list[Aligned] = []
        for text, encoding in zip(texts, backend.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            row = ByteAligned(text, np.array(encoding.ids, dtype=np.int32), self._byte_lengths)
            aligned.append(row if row.is_exact else OffsetAligned(text, backend.encode(text, add_special_tokens=False)))
        return aligned

    def _finish(self, row: Rendered, aligned: Aligned, messages, tools, notes: tuple[str, ...] = ()) -> Encoded:
        """Label the learned tokens and cut what is over the budgets."""
        if row.problem:
            return _dropped(row.problem)
        ids = np.asarray(aligned.ids, dtype=np.int32)
        spans = [aligned.tokens(*characters) for characters in row.learned]
        start, end = spans[-1]
        labels = np.full(len(ids), IGNORED, dtype=np.int32)
        for first, last in spans if self.train_on == "all" else spans[-1:]:
            labels[first:last] = ids[first:last]
        target = min(end - start, self.max_target_length)
        source = min(start, self.max_source_length)
        if source + target > self.max_length:
            target = min(target, max(self.max_length - source, self.max_length // 2))
            source = min(source, self.max_length - target)
        removed = (0, 0)
        if start > source:
            shorter = _without_oldest(messages)
            if shorter is not None:
                rendered = self.render(shorter, tools)
                return self._finish(rendered, *self._align([rendered.text]), shorter, tools, ("oldest turns left out",))
            question = row.turns[-2]
            first, last = aligned.tokens(question.start, question.end)
            removed = aligned.cut(first, last, start - source, self.truncation_side)
            if removed is None:
                return _dropped("the template and system turn alone fill the prompt's budget")
            notes += ("prompt cut",)
        if end - start > target:
            stop = aligned.boundary(start, start + target - 1)
            if stop == start:
                return _dropped("no token of the answer fits the budget")
            notes += ("answer cut",)
            keep = np.r_[: removed[0], removed[1] : stop, end - 1]
        elif len(ids) > self.max_length or notes:
            keep = np.r_[: removed[0], removed[1] : end]  # without what a template writes after the end of turn
        else:
            return Encoded(ids, labels, start)
        prompt_length = start - (removed[1] - removed[0])
        row_fate = fate("truncated", ", ".join(notes)) if notes else KEPT
        return Encoded(ids[keep], labels[keep], prompt_length, row_fate)

    def map_batch(self, table: pa.Table) -> pa.Table:
        """`datasets.map` function on Arrow tables with the columns `messages`, `tools`, `meta` and `place`."""
        conversations = [json.loads(text) for text in table["messages"].to_pylist()]
        tools = [json.loads(text) if text else None for text in table["tools"].to_pylist()]
        rows = self.encode(conversations, tools)
        columns = {
            "input_ids": _list_array([row.input_ids for row in rows]),
            "labels": _list_array([row.labels for row in rows]),
            "prompt_length": pa.array([row.prompt_length for row in rows], pa.int32()),
            "fate": pa.array([row.fate for row in rows], pa.string()),
            "place": table["place"],
        }
        if self.keep_text:
            columns["question"] = pa.array([_last_text(messages, "user") for messages in conversations], pa.string())
            columns["reference"] = pa.array([_last_text(m, "assistant") for m in conversations], pa.string())
            columns["meta"] = table["meta"]
        return pa.table(columns)

    @property
    def features(self) -> Features:
        features = {"input_ids": List(Value("int32")), "labels": List(Value("int32")), "prompt_length": Value("int32")}
        features |= {"fate": Value("string"), "place": Value("string")}
        if self.keep_text:
            features |= {"question": Value("string"), "reference": Value("string"), "meta": Json()}
        return Features(features)


def tokenize_dataset(examples: Dataset, encoder: ChatEncoder, num_proc: int | None = None) -> Dataset:
    """Encode every row of `examples` (those of `load_examples`, form messages), cached by content."""
    if len(examples) == 0:
        raise UserError("there is no row left to train on")
    # The million objects that torch and transformers hold would be walked by each full garbage collection; left out of
    # it, tokenizing takes a tenth less time.
    gc.freeze()
    try:
        tokenized = examples.with_format("arrow").map(
            encoder.map_batch,
            batched=True,
            num_proc=num_proc if num_proc and num_proc > 1 else None,
            remove_columns=examples.column_names,
            features=encoder.features,
            new_fingerprint=fingerprint(examples._fingerprint, encoder.fingerprint),
            desc="Tokenizing",
        )
    finally:
        gc.unfreeze()
    return tokenized.with_format(None)


def _mark(message: Message) -> Message:
    """`message` with marks just inside the white space around its content (around the name of a tool that it calls)."""
    start, end = MARKS[:2] if message["role"] == "assistant" else MARKS[2:]
    if message.get("tool_calls"):
        calls = [{**call, "function": dict(call["function"])} for call in message["tool_calls"]]
        last = calls[-1]["function"]
        last["name"] = f"{start}{last['name']}{end}"
        return {**message, "tool_calls": calls}
    content = message["content"]
    core = content.strip()
    lead = content[: len(content) - len(content.lstrip())]
    return {**message, "content": f"{lead}{start}{core}{end}{content[len(lead) + len(core) :]}"}


def _without_oldest(messages: list[Message]) -> list[Message] | None:
    """`messages` without the first exchange after the system turn, or None where there is but one."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    return messages[: users[0]] + messages[users[1] :] if len(users) > 1 else None


def _roles(messages: list[Message], turns: list[Turn]) -> str:
    return f"{len(turns)} of {len(messages)}: {', '.join(sorted({message['role'] for message in messages}))}"


def _dropped(reason: str) -> Encoded:
    nothing = np.empty(0, np.int32)
    return Encoded(nothing, nothing, 0, fate("dropped", reason))


def _last_text(messages: list[Message], role: str) -> str:
    last = next(message for message in reversed(messages) if message["role"] == role)
    return last.get("content") or json.dumps(last.get("tool_calls"), ensure_ascii=False)


def _list_array(rows: list[np.ndarray]) -> pa.ListArray:
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = np.concatenate(rows) if rows else np.empty(0, np.int32)
    return pa.ListArray.from_arrays(offsets, values)
