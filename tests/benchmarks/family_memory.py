"""The dry run's memory for LoRA and QLoRA on published models, one row of 1,024 tokens, gradient checkpointing.

    python tests/benchmarks/family_memory.py

Sizes are those of the models' config.json. What runs on one card beside the model (CUDA's context) is not counted.
"""

import sys
import warnings
from pathlib import Path

from transformers import AutoConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import build_tokenizer
from hf_recipes.dry_run.memory import estimate
from hf_recipes.dry_run.simulate import Batch, meta_model
from hf_recipes.models.arguments import ModelArguments
from hf_recipes.stages.sft import SFTArguments

CONFIGS = Path(__file__).parents[2] / "configs"
TIED = {"tie_word_embeddings": True}


def sizes(
    hidden: int, layers: int, heads: int, key_value_heads: int, intermediate: int, vocabulary: int, **more
) -> dict:
    named = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    named |= {"num_key_value_heads": key_value_heads, "intermediate_size": intermediate, "vocab_size": vocabulary}
    return {**named, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **more}


EXPERTS = {"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
LATENT = {"q_lora_rank": 768, "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}
MODELS = {
    "Qwen3-1.7B": ("qwen3", "qwen", sizes(2048, 28, 16, 8, 6144, 151936, head_dim=128, **TIED)),
    "Qwen2.5-3B": ("qwen2", "qwen", sizes(2048, 36, 16, 2, 11008, 151936, **TIED)),
    "SmolLM3-3B": ("smollm3", "llama", sizes(2048, 36, 16, 4, 11008, 128256, **TIED)),
    "Phi-4-mini": ("phi3", "phi3", sizes(3072, 32, 24, 8, 8192, 200064, **TIED)),
    "Qwen3-4B": ("qwen3", "qwen", sizes(2560, 36, 32, 8, 9728, 151936, head_dim=128, **TIED)),
    "MiniCPM3-4B": ("minicpm3", "minicpm3", sizes(2560, 62, 40, 40, 6400, 73448, **LATENT)),
    "Gemma 3 4B (text)": ("gemma3_text", "gemma", sizes(2560, 34, 8, 4, 10240, 262208, head_dim=256, **TIED)),
    "ChatGLM3-6B (converted)": ("glm", "glm", sizes(4096, 28, 32, 2, 13696, 65024, head_dim=128)),
    "Pythia-6.9B": ("gpt_neox", "pythia", sizes(4096, 32, 32, 32, 16384, 50432)),
    "Falcon-7B": ("falcon", "falcon", sizes(4544, 32, 71, 1, 18176, 65024, multi_query=True, alibi=False)),
    "Bloom-7B1": ("bloom", "bloom", sizes(4096, 30, 32, 32, 16384, 250880)),
    "Mistral-7B": ("mistral", "llama", sizes(4096, 32, 32, 8, 14336, 32768)),
    "Baichuan2-7B (converted)": ("llama", "llama", sizes(4096, 32, 32, 32, 11008, 125696)),
    "Qwen2.5-7B": ("qwen2", "qwen", sizes(3584, 28, 28, 4, 18944, 152064)),
    "InternLM3-8B": ("internlm3", "llama", sizes(4096, 48, 32, 2, 10240, 128512, head_dim=128)),
    "Llama-3.1-8B": ("llama", "llama", sizes(4096, 32, 32, 8, 14336, 128256)),
    "Qwen3-8B": ("qwen3", "qwen", sizes(4096, 36, 32, 8, 12288, 151936, head_dim=128)),
    "GLM-4-9B-0414": ("glm4", "glm4", sizes(4096, 40, 32, 2, 13696, 151552, head_dim=128)),
    "Qwen3-30B-A3B": ("qwen3_moe", "moe", sizes(2048, 48, 32, 4, 6144, 151936, **EXPERTS)),
}


def main() -> None:
    warnings.simplefilter("ignore")
    tokenizer = build_tokenizer()
    args = SFTArguments(output_dir="unused", report_to="none", bf16=False, gradient_checkpointing=True)
    args.bf16 = True
    print("| model | weights | adapter | LoRA | QLoRA |\n| --- | ---: | ---: | ---: | ---: |")
    for name, (kind, lora, settings) in MODELS.items():
        cells = []
        for bits in (None, 4.13):
            arguments = ModelArguments("unused", lora_config=str(CONFIGS / f"lora_{lora}.json"), dtype="bfloat16")
            config = AutoConfig.for_model(kind, **settings)
            model = meta_model(arguments, config, tokenizer, [], bf16=True)
            memory = estimate(model, Batch(1, 1024, 1024, fused_head=True), args, linear_bits=bits)
            cells.append(f"{memory.peak / 1e9:.1f} GB")
        base = memory.total - memory.trained
        print(f"| {name} | {base / 1e9:.1f} B | {memory.trained / 1e6:,.0f} M | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
