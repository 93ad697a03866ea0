"""Judges: a model on this machine, or one behind an OpenAI-compatible address."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from hf_recipes.core.errors import UserError
from hf_recipes.data.chat.encoder import ChatEncoder
from hf_recipes.evaluation.judging.arguments import JudgeArguments
from hf_recipes.evaluation.over_file import settings_of_model
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.models.inference.decoding import Decoding
from hf_recipes.models.inference.generate import continue_batches, plan_batches
from hf_recipes.models.inference.loading import load_for_inference, open_for_inference

ATTEMPTS = 5
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between attempts, doubled each time
TIMEOUT = 300.0  # seconds of one request
RESUME_HINT = "what is judged is kept, and the same command continues"
TEMPORARY = {408, 409, 425, 429, 500, 502, 503, 504, 529}


class Judge(Protocol):
    """Attributes:
    settings: all that its replies depend on.
    destination: where texts are sent, for people; None for a model on this machine.
    """

    settings: dict[str, Any]
    destination: str | None

    def load(self) -> None: ...

    def replies(self, prompts: Sequence[str]) -> list[str]:
        """The reply to each prompt, without thoughts; empty where the prompt does not fit the model's context."""
        ...


def open_judge(arguments: JudgeArguments, batch_size: int, **source: Any) -> Judge:
    """The judge, checked as far as is possible without its weights and without a request; `source` is of loading."""
    return RemoteJudge(arguments, batch_size) if arguments.is_address else LocalJudge(arguments, batch_size, **source)


class LocalJudge:
    destination = None

    def __init__(self, arguments: JudgeArguments, batch_size: int, **source: Any):
        self._model_args, self._source, self._batch_size = ModelArguments(arguments.judge), source, batch_size
        self._decoding = Decoding(max_new_tokens=arguments.judge_max_new_tokens)
        config, self._tokenizer = open_for_inference(self._model_args, **source)
        if not self._tokenizer.chat_template:
            raise UserError(f"--judge {arguments.judge}: its tokenizer has no chat template; name a chat model")
        self._encoder = ChatEncoder(self._tokenizer, train_on="last")
        self._context = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.settings = {"judge": settings_of_model(self._model_args, config), "tokens": self._decoding.max_new_tokens}
        self._model = None

    def load(self) -> None:
        if self._model is None:
            self._model = load_for_inference(self._model_args, self._tokenizer, **self._source)

    def replies(self, prompts: Sequence[str]) -> list[str]:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        ids = [row.input_ids for row in self._encoder.encode(chats, [None] * len(chats))]
        room = (self._context or float("inf")) - self._decoding.max_new_tokens
        fitting = [index for index, row in enumerate(ids) if len(row) <= room]
        replies = [""] * len(prompts)
        batches = plan_batches([ids[index] for index in fitting], self._batch_size)
        options = {"stop_ids": self._encoder.stop_ids, "marks": self._encoder.template.marks}
        for batch, continuations in continue_batches(
            self._model, self._tokenizer, [ids[index] for index in fitting], batches, self._decoding, **options
        ):
            for index, continuation in zip(batch, continuations, strict=True):
                replies[fitting[index]] = continuation.text
        return replies


class RemoteJudge:
    """Sends each prompt as one user turn to ``ADDRESS/chat/completions``, `batch_size` of them at a time."""

    def __init__(self, arguments: JudgeArguments, batch_size: int):
        address = arguments.judge.rstrip("/").removesuffix("/chat/completions")
        self._url, self._batch_size = f"{address}/chat/completions", batch_size
        self._body = {
            "model": arguments.judge_model,
            "temperature": 0,
            "max_tokens": arguments.judge_max_new_tokens,
        }
        self._key = ""
        if name := arguments.judge_key_env:
            self._key = os.environ.get(name, "").strip()
            if not self._key:
                raise UserError(
                    f"--judge_key_env {name}: there is no environment variable of this name, or it is empty"
                )
        self.settings = {"judge": address, **self._body}
        self.destination = f"{self._url} (model {arguments.judge_model})"
        self._client = None

    def load(self) -> None:
        import httpx

        if self._client is None:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            self._client = httpx.Client(headers=headers, timeout=TIMEOUT)

    def replies(self, prompts: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(self._batch_size) as pool:
            return list(pool.map(self._reply, prompts))

    def _reply(self, prompt: str) -> str:
        import httpx

        body, wait = {**self._body, "messages": [{"role": "user", "content": prompt}]}, FIRST_WAIT
        for attempt in range(1, ATTEMPTS + 1):
            pause = wait
            try:
                response = self._client.post(self._url, json=body)
                if response.is_success:
                    return self._content(response)
                problem = f"HTTP {response.status_code}: {self._quoted(response.text)}"
                if response.status_code not in TEMPORARY:
                    raise UserError(f"--judge {self._url}: {problem}; {RESUME_HINT}")
                retry_after = response.headers.get("Retry-After", "")
                pause = float(retry_after) if retry_after.isdecimal() else wait
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {self._quoted(str(error))}"
            if attempt < ATTEMPTS:
                time.sleep(min(pause, LONGEST_WAIT))
                wait *= 2
        raise UserError(f"--judge {self._url}: {problem} ({ATTEMPTS} attempts); {RESUME_HINT}")

    def _content(self, response) -> str:
        try:
            return response.json()["choices"][0]["message"]["content"] or ""
        except (ValueError, KeyError, IndexError, TypeError):
            text = self._quoted(response.text)
            raise UserError(f"--judge {self._url}: the reply is no chat completion ({text})") from None

    def _quoted(self, text: str) -> str:
        text = " ".join(text.split())
        return (text.replace(self._key, "…") if self._key else text)[:200]
