"""Conversations → `input_ids` and unshifted `labels`: only here is decided what carries loss.

Loss is on what the model must say after the prompt that a server sends: the assistant's turn and what ends it (see
`template`). Prompt and answer are tokenized apart, as they are when a model is asked. One example serves several turns
where each prompt begins with the prompt and the answer before it; else each turn is an example of its own.
"""

import contextlib
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from datasets import Features, Json, Value
from transformers import PreTrainedTokenizerBase

from hf_recipes.core.bounds import TEMPLATE, bounded
from hf_recipes.core.errors import UserError
from hf_recipes.core.ledger import FILTERED, KEPT, row_status
from hf_recipes.data.chat import token_offsets, truncation
from hf_recipes.data.chat.example import Example
from hf_recipes.data.chat.templates import answer_finder, message_form, probes, rendered_text, rendering, template
from hf_recipes.data.chat.templates.dates import printed_date
from hf_recipes.data.chat.templates.rendered_text import describes_tools
from hf_recipes.data.chat.templates.template import TOOLS_IN_SYSTEM, ChatTemplate, has_answer
from hf_recipes.data.chat.token_offsets import Aligner
from hf_recipes.data.chat.truncation import ANSWER_CUT, OVER_BUDGET, cut_answer, cut_prompt, without_oldest
from hf_recipes.data.conversations import thoughts
from hf_recipes.data.conversations.calls import with_objects
from hf_recipes.data.conversations.conversation import FilteredRow, Message, RowProblem, with_text, with_thoughts
from hf_recipes.data.conversations.thought_columns import with_thoughts_key
from hf_recipes.data.examples import fingerprint
from hf_recipes.data.tokenized import FEATURES, Encoded, table_of

# What ids and labels depend on, with the probes of a template.
MODULES = (answer_finder, message_form, rendered_text, rendering, template, thoughts, token_offsets, truncation)
MODULES += probes.MODULES
SplitTurns = Literal["auto", "always", "never"]
IGNORED = -100
Truncation = Literal["cut", "drop"]


class ChatEncoder:
    """Encodes conversations for one tokenizer and one set of budgets.

    Args:
        tokenizer: with a chat template; fast or slow.
        train_on: ``"all"`` assistant turns carry loss, or only the ``"last"``.
        max_source_length: tokens before the last answer. Over it, the oldest exchanges go first, then text of the
            last user turn, on `truncation_side`; the template's own tokens and the system turn stay.
        max_target_length: tokens of the last answer. Over it, the end of its text is cut; the end-of-turn token stays.
            An answer that would be cut in its thoughts, or that calls a tool, is left out.
        max_length: tokens in all. Over it, the prompt is cut to half of it at the least, then the answer.
        truncation: ``"drop"`` leaves an answer that would be cut out instead, and with the last one the row.
        split_turns: when the turns of a conversation become examples of their own: where one example cannot serve them
            (``"auto"``), each of them (``"always"``), or none: then rows that need it are dropped (``"never"``).
        keep_text: also return, for evaluation, the columns `question` (the last user turn), `reference` (the last
            answer as the template shows it: thoughts and tool calls as the model has to write them), and `messages`
            and `meta` unchanged.
        keep_rest: also what the template writes after the end of the last turn, without loss, as reward models see it.
        template_options: variables of the chat template, such as ``enable_thinking``.
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
        truncation: Truncation = "cut",
        split_turns: SplitTurns = "auto",
        keep_text: bool = False,
        keep_rest: bool = False,
        template_options: Mapping[str, Any] | None = None,
    ):
        if tokenizer.chat_template is None:
            raise UserError("the tokenizer has no chat template; name one with --chat_template (chatml, …)")
        self.tokenizer = tokenizer
        self.train_on = train_on
        self.max_source_length = max_source_length or sys.maxsize
        self.max_target_length = max_target_length or sys.maxsize
        self.max_length = max_length or sys.maxsize
        self.truncation_side, self.truncation, self.split_turns = truncation_side, truncation, split_turns
        self.keep_text, self.keep_rest = keep_text, keep_rest
        with bounded(TEMPLATE):
            self.template = ChatTemplate(tokenizer, template_options)
        self._align = Aligner(tokenizer)

    @property
    def end_ids(self) -> list[int]:
        """The special tokens that end an answer."""
        return list(map(int, self._align(self.template.end_of_turn).ids))

    @cached_property
    def stop_ids(self) -> list[int]:
        """The tokens at which generation stops: the last of those that end an answer, and of those that end a call."""
        ends = {self.end_ids[-1]}
        for count in (2, 1):  # some templates take one call a turn
            with contextlib.suppress(RowProblem):
                example = self.template.example(*_calling(count))
                if (example.answer + example.rest).count(example.end) == 1:  # no mark after each call
                    ends.add(int(self._align(example.end).ids[-1]))
                break
        return sorted(ends)

    @property
    def fingerprint(self) -> str:
        """A digest of all that ids and labels depend on: vocabulary, template, budgets, this code."""
        tokenizer = self.tokenizer
        if tokenizer.is_fast:
            state = tokenizer.backend_tokenizer.to_str()
        else:  # whose tokens may be bytes, as Qwen-1's
            state = sorted((index, str(token)) for token, index in tokenizer.get_vocab().items())
        settings = [self.train_on, self.max_source_length, self.max_target_length, self.max_length]
        settings += [self.truncation_side, self.truncation, self.split_turns, self.keep_text, self.keep_rest]
        settings += [self.template.options]
        settings += [tokenizer.chat_template, str(tokenizer.special_tokens_map), printed_date(tokenizer)]
        return fingerprint(
            type(tokenizer).__name__,
            state,
            settings,
            code=(sys.modules[__name__], *MODULES),
        )

    def encode(self, conversations: list[list[Message]], tools: Sequence[list | None] | None = None) -> list[Encoded]:
        """Encode a batch; a row that cannot be used comes back empty, with its status.

        A conversation that ends with a question becomes a prompt: what a server sends for it.
        """
        given = tools or [None] * len(conversations)
        conversations, tools = list(conversations), list(given)
        rendered: list[list[Example] | RowProblem] = []
        with bounded(TEMPLATE) as begin:
            for index, messages in enumerate(conversations):
                begin()
                try:
                    conversations[index] = messages = _uniform(messages)
                    tools[index] = _shown_tools(messages, tools[index])
                    separate = range(len(messages)) if self.split_turns == "always" else ()
                    rendered.append(self._render(messages, tools[index], separate))
                except RowProblem as problem:
                    rendered.append(problem)
        examples = [example for row in rendered if isinstance(row, list) for example in row]
        self._align.prepare(text for example in examples for text in (example.prompt, example.answer))
        encoded: list[Encoded] = []
        for index, (messages, row_tools, row) in enumerate(zip(conversations, tools, rendered, strict=True)):
            try:
                if isinstance(row, RowProblem):
                    raise row
                remarks = [TOOLS_IN_SYSTEM] if given[index] and not row_tools else []
                rows = self._encode_row(messages, row_tools, row, remarks, _calling_turns(messages, given[index]))
            except RowProblem as problem:
                rows = [_dropped(problem)]
            for number, one in enumerate(rows, 1):
                one.conversation, one.following = index, len(rows) - number
            encoded += rows
        self._align.prepare(())
        return encoded

    def served_prompt(self, messages: list[Message], tools: list | None = None) -> np.ndarray:
        """The ids that a server sends for `messages`, which end with a question or a tool's result.

        Raises:
            RowProblem: the template cannot show them.
        """
        messages = _uniform(messages)
        prompt = self.template.prompt(messages, _shown_tools(messages, tools))
        return np.asarray(self._align(prompt).ids, dtype=np.int32)

    def _encode_row(
        self,
        messages: list[Message],
        tools: list | None,
        rendered: list[Example],
        remarks: list[str],
        calling: Collection[int],
    ) -> list[Encoded]:
        examples = self._served(messages, tools, rendered)
        if len(examples) > 1 and self.split_turns == "never":
            raise RowProblem("the chat template shows an earlier turn of the answer otherwise than it was asked for")
        rows, problem, pending = [], None, list(examples)
        while pending:
            example = pending.pop(0)
            turns = _labelled_in(example, messages)
            try:
                rows.append(self._encode_example(turns, tools, example, example.turns - 1 in calling))
            except RowProblem as reason:
                if self.keep_text and example is examples[-1]:
                    raise  # only the last answer is evaluated
                problem = reason
                if example.earlier:  # which may fit without the last one
                    turns = turns[: example.earlier[-1][0] + 1]
                    pending[:0] = self._served(turns, tools, self._render(turns, tools))
        if not rows:
            raise problem
        if has_answer(messages) and not self.keep_text:
            rows = [row for row in rows if (row.labels != IGNORED).any()]
            if not rows:
                raise RowProblem("no turn carries loss")
        for row in rows[:-1]:
            row.status = KEPT
        remarks = [*remarks, *(remark for example in examples for remark in example.remarks)]
        rows[-1].status = _row_status(rows[-1].status, len(examples) > 1, problem, remarks)
        return rows

    def _render(self, messages: list[Message], tools: list | None, separate: Collection[int] = ()) -> list[Example]:
        if not has_answer(messages):
            prompt = self.template.prompt(messages, tools)
            return [Example(prompt, len(messages), left_out=self.template.left_out(messages, tools, prompt))]
        return self.template.examples(messages, tools, self._labelled(messages), separate)

    def _labelled(self, messages: list[Message]) -> list[int]:
        """The indices of the turns that carry loss, and of the last."""
        earlier = enumerate(() if self.train_on == "last" else messages[:-1])
        answers = (index for index, turn in earlier if turn["role"] == "assistant" and turn.get("weight") != 0)
        return [*answers, len(messages) - 1]

    def _served(self, messages: list[Message], tools: list | None, examples: list[Example]) -> list[Example]:
        """`examples`, or more of them: each prompt has the ids of a served one before every answer that it holds."""
        separate: set[int] = set()
        while unserved := {turn for example in examples for turn in self._unserved(example)}:
            separate |= unserved
            examples = self._render(messages, tools, separate)
        return examples

    def _unserved(self, example: Example) -> list[int]:
        """The earlier answers that, or whose prompts, have other tokens alone than in the prompt of `example`."""
        if not example.earlier:
            return []
        aligned, unserved = self._align(example.prompt), []
        for turn, start, end in example.earlier:
            first, last = aligned.tokens(start, end)
            alone = aligned.tokens(start - 1, start)[1] <= first and last <= aligned.tokens(end, end + 1)[0]
            if not (alone and self._align.begins_alike(aligned, start, first)):
                unserved.append(turn)
        return unserved

    def _encode_example(self, messages: list[Message], tools: list | None, example: Example, calls: bool) -> Encoded:
        """Tokenize an example, whose answer `calls` a tool or does not, and truncate what is over the budgets."""
        notes: list[str] = []
        full_prompt_length = 0
        while True:
            prompt = self._align(example.prompt)
            start = len(prompt.ids)
            answer, first = self._align.after(prompt, example.answer) if example.answer else (prompt, start)
            size = len(answer.ids) - first
            full_prompt_length = full_prompt_length or start
            source, target = self._budgets(start, size)
            shorter = without_oldest(messages, prompt, start - source) if start > source else None
            if shorter is None:
                break
            messages, notes = shorter, ["oldest turns left out"]
            example = self._served(messages, tools, self._render(messages, tools))[-1]
        ids = np.asarray(prompt.ids, dtype=np.int32)
        labels = np.full(start, IGNORED, dtype=np.int32)
        for _, begin, end in example.earlier:
            begin, end = prompt.tokens(begin, end)
            labels[begin:end] = ids[begin:end]
        if start > source:
            question = messages[-2 if has_answer(messages) else -1]["content"]
            kept = cut_prompt(prompt, question, start - source, self.truncation_side)
            ids, labels = ids[kept], labels[kept]
            notes.append("prompt cut")
        answer_ids = np.asarray(answer.ids[first:], dtype=np.int32)
        if size > target and self.truncation == "drop":
            raise FilteredRow(OVER_BUDGET)
        if size > target:
            answer_ids = answer_ids[cut_answer(answer, first, target, example, messages[-1], calls)]
            notes.append(ANSWER_CUT)
        answer_labels = answer_ids if example.is_labelled else np.full(len(answer_ids), IGNORED, np.int32)
        if self.keep_rest and example.rest:
            rest = np.asarray(self._align(example.rest).ids, dtype=np.int32)
            answer_ids = np.concatenate([answer_ids, rest])
            answer_labels = np.concatenate([answer_labels, np.full(len(rest), IGNORED, np.int32)])
        notes = [*example.left_out, *notes]
        spans = [end - begin for _, begin, end in example.earlier] + [len(example.answer)] * example.is_labelled
        return Encoded(
            np.concatenate([ids, answer_ids]),
            np.concatenate([labels, answer_labels]),
            len(ids),
            row_status("truncated", ", ".join(notes)) if notes else KEPT,
            self._reference(messages[-1], example) if self.keep_text and example.answer else None,
            full_prompt_length,
            sum(spans) - len(spans) * len(example.end),
        )

    def _budgets(self, prompt: int, answer: int) -> tuple[int, int]:
        """How many of `prompt` and of `answer` tokens may stay."""
        target = min(answer, self.max_target_length)
        source = min(prompt, self.max_source_length)
        if source + target > self.max_length:
            target = min(target, max(self.max_length - source, self.max_length // 2))
            source = min(source, self.max_length - target)
        return source, target

    def _reference(self, message: Message, example: Example) -> str:
        if not message.get("tool_calls"):
            return message["content"].strip()
        ids = self._align(self.template.split_thoughts(example.answer.removesuffix(example.end))[1]).ids
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def map_batch(self, table: pa.Table) -> pa.Table:
        """`datasets.map` function on Arrow tables with the columns `messages`, `tools`, `meta` and `location`."""
        conversations = [json.loads(text) for text in table["messages"].to_pylist()]
        tools = [json.loads(text) if text else None for text in table["tools"].to_pylist()]
        rows = self.encode(conversations, tools)
        indices = [row.conversation for row in rows]
        columns = {
            **table_of(rows),
            "following": pa.array([row.following for row in rows], pa.int32()),
            **{name: table[name].take(indices) for name in ("location", "source")},
        }
        if self.keep_text:
            questions = [last_question(conversations[index]) for index in indices]
            columns |= {"question": pa.array(questions, pa.string())}
            columns |= {"reference": pa.array([row.reference for row in rows], pa.string())}
            columns |= {name: table[name].take(indices) for name in ("messages", "meta")}
        return pa.table(columns)

    @property
    def features(self) -> Features:
        features = {**FEATURES, "following": Value("int32"), "location": Value("string"), "source": Value("string")}
        if self.keep_text:
            features |= {"question": Value("string"), "reference": Value("string"), "messages": Json(), "meta": Json()}
        return Features(features)


def _uniform(messages: list[Message]) -> list[Message]:
    """`messages` with their text, thoughts and arguments of calls in one form."""
    if not messages:
        raise RowProblem("a conversation without turns")
    if not all(message.get("role") for message in messages):
        raise RowProblem("a turn without a role")
    return [with_objects(with_thoughts(with_text(with_thoughts_key(message)))) for message in messages]


def _labelled_in(example: Example, messages: list[Message]) -> list[Message]:
    """The turns of an example; of the answers, those that are labelled in others have the weight 0."""
    *before, last = messages[: example.turns]
    labelled = {turn for turn, _, _ in example.earlier}
    return [*(m if index in labelled else {**m, "weight": 0} for index, m in enumerate(before)), last]


def _shown_tools(messages: list[Message], tools: list | None) -> list | None:
    """The tools that the template shows: none that the system turn describes."""
    return tools if tools and not describes_tools(messages, tools) else None


def _calling(count: int) -> tuple[list[Message], list[dict]]:
    """A question with an answer of `count` calls, and the tools."""
    function = {"name": "PROBEcall", "description": "PROBE", "parameters": {"type": "object", "properties": {}}}
    called = {"name": "PROBEcall", "arguments": {"PROBEkey": "PROBEvalue"}}
    calls = [{"id": f"call{number:05}", "type": "function", "function": called} for number in range(count)]
    answer = {"role": "assistant", "content": "", "tool_calls": calls}
    return [{"role": "user", "content": "PROBEquestion"}, answer], [{"type": "function", "function": function}]


def _calling_turns(messages: list[Message], tools: list | None) -> set[int]:
    """The indices of the answers that call a tool, also by a text: a result follows it, or it has a tool's name."""
    names = [tool.get("function", tool).get("name") for tool in tools or () if isinstance(tool, dict)]
    following = [*messages[1:], None]
    return {
        index
        for index, (message, after) in enumerate(zip(messages, following, strict=True))
        if message["role"] == "assistant"
        and (
            message.get("tool_calls")
            or (after and after["role"] == "tool")
            or any(name in (message["content"] or "") for name in names if isinstance(name, str) and name)
        )
    }


def _row_status(last: str, is_split: bool, problem: RowProblem | None, remarks: list[str]) -> str:
    """The status of a row whose last example has the status `last`, and of which a turn is left out for a `problem`."""
    action, _, reason = last.partition(": ")
    notes = [reason] if reason else []
    if is_split:
        action = "split" if action == KEPT else action
        notes.append("each turn is an example of its own")
    if problem:
        action = "truncated" if action == KEPT else action
        notes.append(f"a turn is left out: {problem.reason}")
    notes += dict.fromkeys(remarks)
    return row_status(action, ", ".join(notes)) if notes else KEPT


def _dropped(problem: RowProblem) -> Encoded:
    nothing, action = np.empty(0, np.int32), FILTERED if isinstance(problem, FilteredRow) else "dropped"
    return Encoded(nothing, nothing, 0, row_status(action, problem.reason))


def last_question(messages: Sequence[Message]) -> str:
    return next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
