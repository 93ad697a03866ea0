"""Which base model, and how it is loaded."""

import os
from dataclasses import dataclass

from hf_recipes.core.settings import setting


@dataclass
class ModelArguments:
    """Which model, in which form, and which of its weights are trained."""

    model_name_or_path: str
    model_revision: str = "main"
    dtype: str = "auto"
    attn_implementation: str | None = None
    use_lora: bool = True
    lora_config: str | None = None
    peft_path: str | None = None
    train_new_tokens: bool = setting(
        "With a new adapter, train the embeddings of the tokens that extend_model.py gave the model too.", True
    )
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_config: str | None = None

    def __post_init__(self):
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise ValueError(f"--dtype {self.dtype}: expected auto, float32, bfloat16 or float16")
        if not self.use_lora and (self.lora_config or self.peft_path):
            raise ValueError("--use_lora False trains all weights; take out --lora_config and --peft_path")
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("--load_in_4bit and --load_in_8bit: choose one")
        if self.quantizes and not self.use_lora:
            flag = "--bnb_config" if self.bnb_config else "--load_in_4bit" if self.load_in_4bit else "--load_in_8bit"
            raise ValueError(f"{flag}: quantized weights cannot be trained; leave --use_lora False out")

    @property
    def quantizes(self) -> bool:
        return bool(self.load_in_4bit or self.load_in_8bit or self.bnb_config)

    @property
    def tokenizer_source(self) -> str:
        """The adapter's folder where a tokenizer was saved with it (its template and tokens), else the model."""
        if self.peft_path and os.path.isfile(os.path.join(self.peft_path, "tokenizer_config.json")):
            return self.peft_path
        return self.model_name_or_path
