"""Which base model, and how it is loaded."""

import os
from dataclasses import MISSING, dataclass

from hf_recipes.core.arguments.settings import setting


@dataclass
class ModelArguments:
    """Which model, in which form, and which of its weights are trained."""

    model_name_or_path: str = setting("The base model: a folder or a Hub id.", MISSING)
    model_revision: str = setting("Branch, tag or commit of the model on the Hub.", "main")
    dtype: str = setting("Of the weights: float32, bfloat16 or float16; auto takes that of the files.", "auto")
    attn_implementation: str | None = setting("Such as sdpa, eager or flash_attention_2; by default transformers'.")
    use_lora: bool = setting("Train an adapter; without it all weights.", True)
    lora_config: str | None = setting("JSON file of the adapter's shape (configs/lora_*.json).")
    peft_path: str | None = setting("An adapter that was trained before, to go on with or to use.")
    train_new_tokens: bool = setting(
        "With a new adapter, train the embeddings of the tokens that extend_model.py gave the model too.", True
    )
    load_in_4bit: bool = setting("Load the base in 4 bits (NF4), as QLoRA does.", False)
    load_in_8bit: bool = setting("Load the base in 8 bits.", False)
    bnb_config: str | None = setting("JSON file of bitsandbytes' settings (configs/bnb_*.json).")

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
