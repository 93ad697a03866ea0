"""A decoder with the habits of code of 2023, as Baichuan-13B (alibi), and with rotary positions as Baichuan-7B.

Tuples as cache; positions in a buffer that is not saved or in a plain attribute; a head that normalizes its weight; a
package for streams that is imported where it is used; checkpointing that is always on.
"""

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_decoder import DecoderConfig


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(size)), eps

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        size, self.heads = config.hidden_size, config.num_attention_heads
        self.W_pack, self.o_proj = nn.Linear(size, 3 * size, bias=False), nn.Linear(size, size, bias=False)

    def forward(self, x, bias, angle, past, use_cache):
        batch, length, size = x.shape
        query, key, value = self.W_pack(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if angle is not None:
            query, key = turned(query, angle), turned(key, angle)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 + bias[..., -length:, :]
        states = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, size)
        return self.o_proj(states), (key, value) if use_cache else None


def turned(x, angle):
    first, second = x.chunk(2, -1)
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)


class Mlp(nn.Module):
    def __init__(self, size, inner):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(size, inner, bias=False), nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x):
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn, self.mlp = Attention(config), Mlp(config.hidden_size, config.intermediate_size)
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, bias=None, angle=None, past=None, use_cache=False):
        attended, present = self.self_attn(self.input_layernorm(x), bias, angle, past, use_cache)
        x = x + attended
        x = x + self.mlp(self.post_attention_layernorm(x))
        return (x, present) if use_cache else (x,)


class Decoder(PreTrainedModel):
    config_class = DecoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(std=0.02)
        for name, parameter in module.named_parameters():
            if name == "layers.0.mlp.down_proj.weight":  # of a module inside this one
                parameter.data.normal_(std=0.02)

    def _set_gradient_checkpointing(self, module, value=False):
        if isinstance(module, DecoderModel):
            module.gradient_checkpointing = value


class DecoderModel(Decoder):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = config.gradient_checkpointing
        self.rotates, heads = hasattr(config, "max_position_embeddings"), config.num_attention_heads
        dim = config.hidden_size // heads
        self.register_buffer("inv_freq", 10_000.0 ** -(torch.arange(0, dim, 2) / dim), persistent=False)
        self.slopes = torch.tensor([2.0 ** -(8 * (head + 1) / heads) for head in range(heads)])
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def forward(
        self, input_ids=None, attention_mask=None, past_key_values=None, inputs_embeds=None, use_cache=False, **kwargs
    ):
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        before = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        index = torch.arange(before + x.shape[1])
        bias = torch.full((len(index), len(index)), float("-inf")).triu(1)
        if not self.rotates:
            bias = bias + self.slopes[:, None, None] * (index - index[:, None])
        if attention_mask is not None:
            bias = bias + (1 - attention_mask[:, None, None].to(bias)) * torch.finfo(bias.dtype).min
        bias = bias.clamp(min=torch.finfo(bias.dtype).min).to(x)
        angle = torch.outer(index[before:].float(), self.inv_freq) if self.rotates else None
        presents = ()
        for number, layer in enumerate(self.layers):
            if self.gradient_checkpointing and self.training:
                outputs = torch.utils.checkpoint.checkpoint(layer, x, bias, angle, None, False, use_reentrant=True)
            else:
                past = None if past_key_values is None else past_key_values[number]
                outputs = layer(x, bias=bias, angle=angle, past=past, use_cache=use_cache)
            x, presents = outputs[0], presents + outputs[1:]
        return BaseModelOutputWithPast(self.norm(x), presents or None)


class NormHead(nn.Module):
    def __init__(self, size, rows):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, size))

    def forward(self, x):
        return functional.linear(x, functional.normalize(self.weight))


class BaichuanForCausalLM(Decoder):
    def __init__(self, config):
        super().__init__(config)
        self.model = DecoderModel(config)
        kind = NormHead if hasattr(config, "z_loss_weight") else lambda *sizes: nn.Linear(*sizes, bias=False)
        self.lm_head = kind(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, labels=None, use_cache=None, **kwargs):
        output = self.model(input_ids, attention_mask, past_key_values, use_cache=use_cache)
        return CausalLMOutputWithPast(None, self.lm_head(output[0]), output.past_key_values)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, **kwargs):
        if past_key_values:
            input_ids = input_ids[:, -1:]
        return {"input_ids": input_ids, "past_key_values": past_key_values, "use_cache": kwargs.get("use_cache")}

    @staticmethod
    def _reorder_cache(past_key_values, beam_idx):
        return tuple(tuple(past.index_select(0, beam_idx) for past in layer) for layer in past_key_values)

    def chat_stream(self):
        from transformers_stream_generator.main import NewGenerationMixin

        return NewGenerationMixin
