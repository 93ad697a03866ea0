"""A model with the habits of ChatGLM-6B's code: (T, B, H) inside, tuples as cache, prompts that see themselves whole,
two positions a token, values of tensors read in between, weights in half precision, no `post_init`, and sizes by other
names."""

import torch
from torch import nn
from torch.nn.utils import skip_init
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


class PrefixConfig(PretrainedConfig):
    model_type = "chatglm"

    def __init__(self, num_layers=2, max_sequence_length=64, mask_token_id=4, gmask_token_id=5, **kwargs):
        self.num_layers, self.max_sequence_length = num_layers, max_sequence_length
        self.mask_token_id, self.gmask_token_id = mask_token_id, gmask_token_id
        super().__init__(**kwargs)


def linear(inner, outer):
    return skip_init(nn.Linear, inner, outer, dtype=torch.half)


class Rotary(nn.Module):
    def __init__(self, dim, precision=torch.half):
        super().__init__()
        self.register_buffer("inv_freq", (10_000.0 ** -(torch.arange(0, dim, 2).float() / dim)).half())
        self.precision = precision
        self.longest = self.cos = self.sin = None

    def forward(self, x, positions, length):
        """`x` (T, B, heads, d), `positions` (B, T), all below `length`, which is a tensor."""
        if self.longest is None or length > self.longest:
            self.longest = length
            angle = torch.arange(length, device=x.device)[:, None].to(self.inv_freq) * self.inv_freq
            angle = torch.cat([angle, angle], -1)
            self.cos, self.sin = angle.cos().to(x), angle.sin().to(x)
        cos, sin = (nn.functional.embedding(positions.t(), table)[:, :, None] for table in (self.cos, self.sin))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        size, self.heads = config.hidden_size, config.num_attention_heads
        self.rotary_emb = Rotary(size // self.heads // 2)
        self.query_key_value, self.dense = linear(size, 3 * size), linear(size, size)

    def forward(self, x, positions, mask, past, use_cache):
        length, batch, size = x.shape
        query, key, value = self.query_key_value(x).view(length, batch, self.heads, -1).chunk(3, -1)
        query, key = (
            torch.cat(
                [
                    self.rotary_emb(half, positions[:, i], positions.max() + 1)
                    for i, half in enumerate(states.chunk(2, -1))
                ],
                -1,
            )
            for states in (query, key)
        )
        if past is not None:
            key, value = torch.cat([past[0], key]), torch.cat([past[1], value])
        scores = torch.einsum("qbhd,kbhd->bhqk", query, key) / query.shape[-1] ** 0.5
        if not (mask == 0).all():
            scores = scores.masked_fill(mask, -10000.0)
        states = torch.einsum("bhqk,kbhd->qbhd", scores.softmax(-1), value).reshape(length, batch, size)
        return self.dense(states), (key, value) if use_cache else None


class Mlp(nn.Module):
    def __init__(self, size, inner):
        super().__init__()
        self.dense_h_to_4h, self.dense_4h_to_h = linear(size, inner), linear(inner, size)

    def forward(self, x):
        return self.dense_4h_to_h(nn.functional.gelu(self.dense_h_to_4h(x)))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (nn.LayerNorm(config.hidden_size) for _ in range(2))
        self.attention, self.mlp = Attention(config), Mlp(config.hidden_size, config.inner_hidden_size)
        self.alpha = (2 * config.num_layers) ** 0.5

    def forward(self, x, position_ids, mask, layer_past=None, use_cache=False):
        x = self.input_layernorm(x)
        attended, present = self.attention(x, position_ids, mask, layer_past, use_cache)
        x = self.post_attention_layernorm(x * self.alpha + attended)
        return (x * self.alpha + self.mlp(x), present)


class Prefix(PreTrainedModel):
    config_class = PrefixConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True

    def _init_weights(self, module):
        return

    def _set_gradient_checkpointing(self, module, value=False):
        if isinstance(module, PrefixModel):
            module.gradient_checkpointing = value

    def mask_and_positions(self, input_ids):
        rows = input_ids.tolist()
        length = input_ids.shape[1]
        mask, positions = torch.ones(len(rows), 1, length, length).tril() < 0.5, torch.zeros(len(rows), 2, length)
        for number, row in enumerate(rows):
            start = row.index(self.config.bos_token_id)
            mask[number, :, :, :start] = False
            positions[number, 0, :start] = torch.arange(start)
            positions[number, 0, start:] = row.index(self.config.gmask_token_id)
            positions[number, 1, start:] = torch.arange(1, length - start + 1)
        return mask, positions.long()


class PrefixModel(Prefix):
    def __init__(self, config, empty_init=True):
        super().__init__(config)
        self.word_embeddings = skip_init(nn.Embedding, config.vocab_size, config.hidden_size, dtype=torch.half)
        self.gradient_checkpointing = False
        self.layers = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.final_layernorm = nn.LayerNorm(config.hidden_size)

    def get_input_embeddings(self):
        return self.word_embeddings

    def forward(
        self,
        input_ids=None,
        position_ids=None,
        attention_mask=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        return_dict=None,
    ):
        x = (self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds).transpose(0, 1)
        if attention_mask is None:
            attention_mask, position_ids = self.mask_and_positions(input_ids)
        presents = ()
        for number, layer in enumerate(self.layers):
            past = None if past_key_values is None else past_key_values[number]
            if self.gradient_checkpointing and self.training:
                x, present = torch.utils.checkpoint.checkpoint(layer, x, position_ids, attention_mask, past)
            else:
                x, present = layer(x, position_ids, attention_mask, layer_past=past, use_cache=use_cache)
            presents += (present,)
        return BaseModelOutputWithPast(self.final_layernorm(x), presents if use_cache else None)


class ChatGLMForConditionalGeneration(Prefix):
    def __init__(self, config, empty_init=True):
        super().__init__(config)
        self.transformer = PrefixModel(config, empty_init=empty_init)
        self.lm_head = skip_init(nn.Linear, config.hidden_size, config.vocab_size, bias=False, dtype=torch.half)

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, use_cache=None, **kwargs):
        use_cache = use_cache if use_cache is not None else self.config.use_cache
        output = self.transformer(input_ids=input_ids, use_cache=use_cache, **kwargs)
        return CausalLMOutputWithPast(None, self.lm_head(output[0]).permute(1, 0, 2), output.past_key_values)

    def prepare_inputs_for_generation(self, input_ids, past=None, past_key_values=None, **kwargs):
        return {"input_ids": input_ids[:, -1:] if past_key_values else input_ids, "past_key_values": past_key_values}

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, **kwargs):
        model_kwargs["past_key_values"] = self._extract_past_from_model_output(outputs)
        return model_kwargs
