"""What llama.cpp's script of this name does, for tiny Llamas and Qwen3s with byte-level BPE; no checkout of it.

It knows no tokenizer by its hash.
"""

import argparse
import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
QWEN3_NAMES = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
FORMS = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}


class ModelBase:
    pass


class TextModel(ModelBase):
    def get_vocab_base_pre(self, tokenizer) -> str:
        raise NotImplementedError("BPE pre-tokenizer was not recognized - update get_vocab_base_pre()")


def write_gguf(folder: Path, path: Path, outtype: str = "f32", pre: str | None = "gpt-2", **more: bool) -> None:
    """Write the model in `folder`, whose weights are in float32, to `path`.

    Args:
        pre: the name of its pre-tokenizer, which may be left out.
        more: ``tokenizer.ggml`` keys, such as `add_bos_token`.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads, heads_kv = config["num_attention_heads"], config["num_key_value_heads"]
    qwen3 = config["model_type"] == "qwen3"
    writer = gguf.GGUFWriter(path, "qwen3" if qwen3 else "llama")
    if qwen3:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads_kv)
    positions = config["rope_parameters"]
    writer.add_rope_freq_base(positions["rope_theta"])
    if positions["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(positions["rope_type"]))
        writer.add_rope_scaling_factor(positions["factor"])
    if positions["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(positions["original_max_position_embeddings"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    special = {token["content"]: token["id"] for token in tokens["added_tokens"]}
    vocabulary = tokens["model"]["vocab"] | special
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_types([3 if token in special else 1 for token in sorted(vocabulary, key=vocabulary.get)])
    writer.add_token_merges([" ".join(pair) for pair in tokens["model"]["merges"]])
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for key, value in ({"add_bos_token": False} | more).items():
        writer.add_bool(f"tokenizer.ggml.{key}", value)
    writer.add_chat_template(template)

    def add(name: str, weight: np.ndarray) -> None:
        form = FORMS["f32"] if weight.ndim == 1 else FORMS[outtype]
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(weight), form), raw_dtype=form)

    if positions["rope_type"] == "llama3":
        values = LlamaConfig.from_pretrained(folder)
        plain = positions["rope_theta"] ** -np.arange(0, 1, 2 / values.head_dim)
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](values)
        add("rope_freqs.weight", np.float32(plain / scaled.numpy()))
    state = load_file(folder / "model.safetensors")
    add("token_embd.weight", state["model.embed_tokens.weight"])
    add("output_norm.weight", state["model.norm.weight"])
    if "lm_head.weight" in state:
        add("output.weight", state["lm_head.weight"])
    for layer in range(layers):
        for ours, theirs in (NAMES | QWEN3_NAMES if qwen3 else NAMES).items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            if not qwen3 and theirs in ("attn_q", "attn_k"):  # GGUF keeps each head's rotary halves interleaved
                count = heads if theirs == "attn_q" else heads_kv
                weight = weight.reshape(count, 2, -1, hidden).swapaxes(1, 2).reshape(weight.shape)
            add(f"blk.{layer}.{theirs}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--outtype", choices=FORMS)
    parser.add_argument("--outfile", type=Path)
    args = parser.parse_args()
    [architecture] = json.loads((args.model / "config.json").read_text(encoding="utf-8"))["architectures"]
    if architecture not in ("LlamaForCausalLM", "Qwen3ForCausalLM"):
        sys.exit(f"ERROR:hf-to-gguf:Model {architecture} is not supported")
    write_gguf(args.model, args.outfile, args.outtype, TextModel().get_vocab_base_pre(None))


if __name__ == "__main__":
    main()
