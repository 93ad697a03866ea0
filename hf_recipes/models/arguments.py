"""Which base model, and how it is loaded."""

import os
from dataclasses import MISSING, dataclass

from hf_recipes.core.settings import setting


@dataclass
class ModelArguments:
    """Which model, in which form, and which of its weights are trained."""

    model_name_or_path: str = setting("Folder or Hub id of the model.", MISSING)
    model_revision: str = setting("Branch, tag or commit of the model on the Hub.", "main")
    dtype: str = setting(
        "Of the weights: float32, bfloat16 or float16; auto is bfloat16 where they are frozen and the run "
        "computes in it, else float32.",
        "auto",
    )
    attn_implementation: str | None = setting("Attention, such as sdpa or flash_attention_2; by default the model's.")
    use_lora: bool = setting("Train an adapter; False trains all weights.", True)
    lora_config: str | None = setting("JSON file of a new adapter: lora_r, lora_alpha, any key of PEFT's LoraConfig.")
    peft_path: str | None = setting("Folder of an adapter, to train further or to use with the model.")
    train_new_tokens: bool = setting(
        "With a new adapter, train the embeddings of the tokens that extend_model.py gave the model too.", True
    )
    load_in_4bit: bool = setting("Quantize the model's weights to 4 bits (NF4, double quantization).", False)
    load_in_8bit: bool = setting("Quantize the model's weights to 8 bits.", False)
    bnb_config: str | None = setting("JSON file of a quantization, with any key of BitsAndBytesConfig.")

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
