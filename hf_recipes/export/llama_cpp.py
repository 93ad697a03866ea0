"""A GGUF file run by llama.cpp (the package xllamacpp), as a server in a separate process.

Run as a script this is that process, which a file that llama.cpp cannot read may crash.
"""

import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_recipes.core.errors import UserError

GET_RUNTIME = "pip install xllamacpp"


def is_installed() -> bool:
    return importlib.util.find_spec("xllamacpp") is not None


class LlamaCpp:
    """A server of llama.cpp on this machine."""

    def __init__(self, address: str):
        self.address = address
        # Without the proxy that the environment may name.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        # The server gives no probabilities with a token that is part of a character, so it has to choose this one.
        self._plain = next(ids[0] for sign in "aAe10.," if len(ids := self.tokenize(sign, add_special=False)) == 1)

    def _post(self, path: str, **content: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            self.address + path, json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        try:
            with self._open(request, timeout=600) as response:
                return json.loads(response.read())
        except OSError as error:  # it refuses, or has ended
            with contextlib.suppress(AttributeError, ValueError, LookupError):
                error = json.loads(error.read())["error"]["message"]
            raise UserError(f"llama.cpp does not run the file that was made ({error}); nothing is left") from None

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        return self._post("/tokenize", content=text, add_special=add_special, parse_special=True)["tokens"]

    def next_tokens(self, ids: Sequence[int], count: int) -> dict[int, float]:
        """Log-probabilities of the `count` likeliest tokens after `ids`, likeliest first."""
        answer = self._post(
            "/completion",
            prompt=list(ids),
            n_predict=1,
            n_probs=count,
            temperature=0.0,
            logit_bias=[[self._plain, 1e4]],  # added after the probabilities are taken
        )
        if not answer.get("completion_probabilities"):
            raise UserError("llama.cpp finds no token likely: its logits are no numbers")
        return {token["id"]: token["logprob"] for token in answer["completion_probabilities"][0]["top_logprobs"]}


@contextlib.contextmanager
def serve(gguf: Path, context: int) -> Iterator[LlamaCpp]:
    """Run llama.cpp on `gguf`, in float32 where the file's weights are, with a context of `context` tokens."""
    import torch  # not in the process of the server

    command = [sys.executable, "-m", __name__, str(gguf), str(context), str(torch.get_num_threads())]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            address = next((line.strip() for line in process.stdout if line.startswith("http://")), None)
            if address is None:
                process.wait()
                log.seek(0)
                lines = [line.strip() for line in log if line.strip()]
                reason = next((line for line in lines if "error" in line.lower()), (lines or ["it ended"])[-1])
                raise UserError(f"{gguf.name}: llama.cpp cannot load it ({reason[:300]})")
            yield LlamaCpp(address)
        finally:
            with contextlib.suppress(OSError):
                process.stdin.close()  # which ends it
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def _main(gguf: str, context: str, threads: str) -> None:
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx = gguf, int(context)
    settings.n_parallel, settings.n_gpu_layers, settings.warmup, settings.ui = 1, 0, False, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = int(threads)
    settings.hostnames, settings.port = ["127.0.0.1"], 0
    # By default keys and values are kept in float16.
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(settings)
    print(f"\n{server.listening_address}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _main(*sys.argv[1:])
