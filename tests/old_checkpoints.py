"""Tiny random checkpoints in the layouts of the older families, with tokenizers that are trained here."""

import base64
import functools
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models

from conftest import TEXT
from hf_recipes.models.families import layouts
from hf_recipes.models.tokenizers.pretokenizers import mixed_texts

TIKTOKEN = {"qwen": layouts.QWEN, "glm4": layouts.GLM4}
HIDDEN, HEADS, GROUPS, LAYERS, INNER = 32, 4, 2, 2, 48
PIECES = 900
LLAMA_SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
GLM_SIZES = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "ffn_hidden_size": INNER,
    "hidden_size": HIDDEN,
    "kv_channels": 12,  # not hidden_size / heads
    "layernorm_epsilon": 1e-5,
    "multi_query_attention": True,
    "multi_query_group_num": GROUPS,
    "num_attention_heads": HEADS,
    "num_layers": LAYERS,
    "original_rope": True,
    "post_layer_norm": True,
    "quantization_bit": 0,
    "rmsnorm": True,
    "seq_length": 64,
}


@dataclass
class Old:
    """A family's config.json, tokenizer_config.json and the layout of its weights.

    Attributes:
        sizes: shapes by name; of tensors in layers with `{}` for the number. V is the number of embeddings.
        prefix: whether its SentencePiece model puts a space before texts.
        user_defined: pieces of it.
    """

    config: dict
    sizes: dict
    tokenizer: dict = field(default_factory=dict)
    prefix: bool = True
    user_defined: tuple = ()
    inv_freq: tuple | None = None  # name and dimension


V = "V"
LLAMA_MLP = {
    "model.layers.{}.mlp.gate_proj.weight": (INNER, HIDDEN),
    "model.layers.{}.mlp.up_proj.weight": (INNER, HIDDEN),
    "model.layers.{}.mlp.down_proj.weight": (HIDDEN, INNER),
    "model.layers.{}.input_layernorm.weight": (HIDDEN,),
    "model.layers.{}.post_attention_layernorm.weight": (HIDDEN,),
    "model.norm.weight": (HIDDEN,),
    "model.embed_tokens.weight": (V, HIDDEN),
}
HEAD = {"lm_head.weight": (V, HIDDEN)}
PACKED = (
    LLAMA_MLP
    | HEAD
    | {
        "model.layers.{}.self_attn.W_pack.weight": (3 * HIDDEN, HIDDEN),
        "model.layers.{}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    }
)


def _attention(keys: int, biases: bool) -> dict:
    sizes = {"q": (HIDDEN, HIDDEN), "k": (keys, HIDDEN), "v": (keys, HIDDEN), "o": (HIDDEN, HIDDEN)}
    shapes = {f"model.layers.{{}}.self_attn.{name}_proj.weight": shape for name, shape in sizes.items()}
    if biases:
        shapes |= {f"model.layers.{{}}.self_attn.{name}_proj.bias": shape[:1] for name, shape in sizes.items()}
    return shapes


HEAD_DIM = HIDDEN // HEADS
GLM = {
    "transformer.embedding.word_embeddings.weight": (V, HIDDEN),
    "transformer.encoder.layers.{}.input_layernorm.weight": (HIDDEN,),
    "transformer.encoder.layers.{}.self_attention.query_key_value.weight": ((HEADS + 2 * GROUPS) * 12, HIDDEN),
    "transformer.encoder.layers.{}.self_attention.query_key_value.bias": ((HEADS + 2 * GROUPS) * 12,),
    "transformer.encoder.layers.{}.self_attention.dense.weight": (HIDDEN, HEADS * 12),
    "transformer.encoder.layers.{}.post_attention_layernorm.weight": (HIDDEN,),
    "transformer.encoder.layers.{}.mlp.dense_h_to_4h.weight": (2 * INNER, HIDDEN),
    "transformer.encoder.layers.{}.mlp.dense_4h_to_h.weight": (HIDDEN, INNER),
    "transformer.encoder.final_layernorm.weight": (HIDDEN,),
    "transformer.output_layer.weight": (V, HIDDEN),
}
GLM_INV_FREQ = ("transformer.rotary_pos_emb.inv_freq", 6)
FAMILIES = {
    "baichuan": Old(
        LLAMA_SIZES | {"architectures": ["BaiChuanForCausalLM"], "model_type": "baichuan"},
        PACKED,
        {"add_bos_token": False},
        prefix=False,
        inv_freq=("model.layers.{}.self_attn.rotary_emb.inv_freq", HEAD_DIM),
    ),
    "baichuan2": Old(
        LLAMA_SIZES
        | {
            "architectures": ["BaichuanForCausalLM"],
            "model_type": "baichuan",
            "model_max_length": 64,
            "z_loss_weight": 0,
        },
        PACKED,
        {"add_bos_token": False, "pad_token": {"content": "<unk>"}},
        prefix=False,
        user_defined=("<reserved_106>", "<reserved_107>"),
    ),
    "qwen": Old(
        {
            "architectures": ["QWenLMHeadModel"],
            "model_type": "qwen",
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * INNER,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "kv_channels": HEAD_DIM,
            "layer_norm_epsilon": 1e-5,
            "no_bias": True,
            "rotary_emb_base": 10000,
            "rotary_pct": 1.0,
            "scale_attn_weights": True,
            "seq_length": 64,
            "max_position_embeddings": 128,
            "use_dynamic_ntk": True,
            "use_logn_attn": True,
            "tie_word_embeddings": False,
        },
        {
            "transformer.wte.weight": (V, HIDDEN),
            "transformer.h.{}.ln_1.weight": (HIDDEN,),
            "transformer.h.{}.attn.c_attn.weight": (3 * HIDDEN, HIDDEN),
            "transformer.h.{}.attn.c_attn.bias": (3 * HIDDEN,),
            "transformer.h.{}.attn.c_proj.weight": (HIDDEN, HIDDEN),
            "transformer.h.{}.ln_2.weight": (HIDDEN,),
            "transformer.h.{}.mlp.w1.weight": (INNER, HIDDEN),
            "transformer.h.{}.mlp.w2.weight": (INNER, HIDDEN),
            "transformer.h.{}.mlp.c_proj.weight": (HIDDEN, INNER),
            "transformer.ln_f.weight": (HIDDEN,),
        }
        | HEAD,
    ),
    "internlm": Old(
        LLAMA_SIZES
        | {
            "architectures": ["InternLMForCausalLM"],
            "model_type": "internlm",
            "bias": True,
            "rotary": {"base": 10000, "type": "dynamic"},
        },
        LLAMA_MLP | HEAD | _attention(HIDDEN, biases=True),
        user_defined=("<eoh>", "<eoa>", "<TOKENS_UNUSED_1>"),
        inv_freq=("model.layers.{}.self_attn.rotary_emb.inv_freq", HEAD_DIM),
    ),
    "internlm2": Old(
        LLAMA_SIZES
        | {
            "architectures": ["InternLM2ForCausalLM"],
            "model_type": "internlm2",
            "bias": False,
            "num_key_value_heads": GROUPS,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
            "rope_theta": 1000000,
        },
        {
            "model.tok_embeddings.weight": (V, HIDDEN),
            "model.layers.{}.attention_norm.weight": (HIDDEN,),
            "model.layers.{}.attention.wqkv.weight": ((HEADS + 2 * GROUPS) * HEAD_DIM, HIDDEN),
            "model.layers.{}.attention.wo.weight": (HIDDEN, HIDDEN),
            "model.layers.{}.ffn_norm.weight": (HIDDEN,),
            "model.layers.{}.feed_forward.w1.weight": (INNER, HIDDEN),
            "model.layers.{}.feed_forward.w3.weight": (INNER, HIDDEN),
            "model.layers.{}.feed_forward.w2.weight": (HIDDEN, INNER),
            "model.norm.weight": (HIDDEN,),
            "output.weight": (V, HIDDEN),
        },
        {
            "pad_token": "</s>",
            "added_tokens_decoder": {
                "3": {"content": "<|im_end|>", "special": True},
                "4": {"content": "<|im_start|>", "special": True},
            },
        },
        prefix=False,
        user_defined=("[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"),
    ),
    "chatglm2": Old(GLM_SIZES | {"_name_or_path": "THUDM/chatglm2-6b"}, GLM, inv_freq=GLM_INV_FREQ),
    "chatglm3": Old(GLM_SIZES | {"_name_or_path": "THUDM/chatglm3-6b"}, GLM, inv_freq=GLM_INV_FREQ),
    "glm4": Old(
        GLM_SIZES | {"_name_or_path": "THUDM/glm-4-9b", "rope_ratio": 50},
        GLM,
        {"tokenizer_class": "ChatGLM4Tokenizer", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        inv_freq=GLM_INV_FREQ,
    ),
    "minicpm": Old(
        LLAMA_SIZES
        | {
            "architectures": ["MiniCPMForCausalLM"],
            "model_type": "minicpm",
            "num_key_value_heads": GROUPS,
            "scale_emb": 12,
            "scale_depth": 1.4,
            "dim_model_base": 16,
            "tie_word_embeddings": True,
        },
        LLAMA_MLP | _attention(GROUPS * HEAD_DIM, biases=False),
        user_defined=("<用户>", "<AI>"),
    ),
}


@functools.cache
def sentencepiece_model(prefix: bool, user_defined: tuple, **more) -> bytes:
    written = io.BytesIO()
    settings = {
        "vocab_size": PIECES,
        "model_type": "bpe",
        "byte_fallback": True,
        "add_dummy_prefix": prefix,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "allow_whitespace_only_pieces": True,
        "user_defined_symbols": list(user_defined),
        "character_coverage": 0.99,
        "minloglevel": 2,
    }
    sentences = [line for text in [*TEXT * 3, *mixed_texts()[:200]] for line in text.split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=written, **{**settings, **more}
    )
    return written.getvalue()


WORDS = ["中国", "国人", "人民", "民共", "共和", "和国", "天天", "天气", "我们", "们去", "公园", "园散", "散步", "学习"]


def appended(pieces=WORDS) -> bytes:
    """As Chinese-LLaMA: Chinese pieces of score 0 behind those of an older model."""
    model = ModelProto.FromString(sentencepiece_model(True, ()))
    known = {piece.piece for piece in model.pieces}
    characters = [sign for sign in dict.fromkeys("".join(pieces)) if sign not in known]
    for text in [*characters, *(piece for piece in pieces if piece not in known)]:
        model.pieces.add(piece=text, score=0.0)
    return model.SerializeToString()


@functools.cache
def tiktoken_file() -> bytes:
    """Bytes first, in tiktoken's order, then the tokens of merges that were trained here."""
    backend = Tokenizer(tokenizer_models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [*TEXT * 3, *mixed_texts()[:200]],
        trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False),
    )
    merges = json.loads(backend.to_str())["model"]["merges"]
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    signs = {sign: byte for byte, sign in bytes_to_unicode().items()}
    tokens = [bytes([byte]) for byte in range(255, -1, -1)]
    tokens += [bytes(signs[sign] for sign in left + right) for left, right in merges]
    unique = list(dict.fromkeys(tokens))
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(unique))


def vocabulary_size(name: str) -> int:
    if name in TIKTOKEN:
        return len(tiktoken_file().splitlines()) + len(TIKTOKEN[name].special) + 3
    return PIECES + 12  # a few rows more than tokens


def state_of(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights and biases; norms about 1."""
    generator = torch.Generator().manual_seed(seed)
    old, state = FAMILIES[name], {}
    for key, shape in old.sizes.items():
        shape = [vocabulary_size(name) if size == V else size for size in shape]
        for number in range(LAYERS if "{}" in key else 1):
            values = torch.randn(shape, generator=generator)
            norm = len(shape) == 1 and "bias" not in key
            state[key.format(number)] = 1 + 0.2 * values if norm else 0.2 * values
    if old.inv_freq:
        key, dim = old.inv_freq
        for number in range(LAYERS if "{}" in key else 1):
            state[key.format(number)] = (1 / 10000 ** (torch.arange(0, dim, 2) / dim)).half().float()
    return state


def write_old(folder: Path, name: str, *, form: str = "bin", shards: int = 1, state=None, **config) -> Path:
    """A checkpoint of the family `name` in `folder`; `config` changes its config.json (None removes a key)."""
    folder.mkdir(parents=True, exist_ok=True)
    old, state = FAMILIES[name], state_of(name) if state is None else state
    size = "padded_vocab_size" if "num_layers" in old.config else "vocab_size"
    values = old.config | {size: vocabulary_size(name)} | config
    values = {key: value for key, value in values.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(old.tokenizer), encoding="utf-8")
    if name in TIKTOKEN:
        file = "qwen.tiktoken" if name == "qwen" else "tokenizer.model"
        (folder / file).write_bytes(tiktoken_file())
    else:
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(old.prefix, old.user_defined))
    stem, ending = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    names, weight_map = list(state), {}
    for number in range(shards):
        file = f"{stem}.{ending}" if shards == 1 else f"{stem}-{number + 1:05}-of-{shards:05}.{ending}"
        part = {key: state[key] for key in names[number::shards]}
        weight_map |= dict.fromkeys(part, file)
        if form == "safetensors":
            save_file(part, folder / file)
        else:
            torch.save(part, folder / file, _use_new_zipfile_serialization=form != "old bin")
    if shards > 1:
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return folder
