"""What models of code for transformers 4.2x lack on transformers 5, as mixins of subclasses of their classes."""

import inspect
from typing import Any

import torch
from accelerate import init_empty_weights
from peft.utils.integrations import gather_params_ctx
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.initialization import no_init_weights
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from hf_recipes.core.errors import UserError


def subclass(kind: type, first: type, *last: type) -> type:
    return type(kind.__name__, (first, kind, *last), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


class Constructed:
    """Mixin: version 5 makes all tensors without values, of which only weights get some; here only weights are so.

    Rotary frequencies, in buffers that are not saved or in plain attributes, are those that the code computes.
    """

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        if not hasattr(self, "all_tied_weights_keys"):  # of code that does not call it
            self.post_init()

    @classmethod
    def get_init_context(cls, *args: Any, **kwargs: Any) -> list[Any]:
        contexts = super().get_init_context(*args, **kwargs)
        without = [context for context in contexts if not isinstance(context, torch.device)]
        return [*without, *([no_init_weights(), init_empty_weights(False)] if without != contexts else [])]

    def _move_missing_keys_from_meta_to_device(self, missing_keys: set[str], *args: Any) -> None:
        saved = self.state_dict().keys() - missing_keys
        computed = {name: value for name, value in self.named_buffers() if name not in saved and not value.is_meta}
        super()._move_missing_keys_from_meta_to_device(missing_keys, *args)
        for name, value in computed.items():
            path, _, key = name.rpartition(".")
            buffers = self.get_submodule(path)._buffers
            buffers[key] = value.to(buffers[key].device)

    def _initialize_missing_keys(self, is_quantized: bool) -> None:
        """Nothing: version 5 would do it for modules with such buffers, and their code then for all weights inside.

        Whoever loads the model refuses missing weights.
        """


class LegacyCache(DynamicCache):
    """Keys and values of a model that continues one token at a time, and no longer text at once."""


class Body:
    """Mixin of the model without its head: caches of version 5 outside, tuples inside; checkpointing layer by layer."""

    gradient_checkpointing = property(lambda self: False, lambda self, value: None)  # of the layers alone
    to_tuple = from_tuple = (0, 1, 2, 3)  # dimensions of keys and values, which a cache has as (B, heads, T, d)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if attention_mask is not None and attention_mask.ndim == 4:  # of `prepare_inputs_for_generation`
            inputs = {"attention_mask": attention_mask, "position_ids": position_ids}
        else:
            inputs = self.inputs(input_ids, attention_mask)
        caches = not self.training and (self.config.use_cache if use_cache is None else use_cache)
        length = past_key_values.get_seq_length() if past_key_values is not None else 0
        past = tuple(
            tuple(states.permute(self.to_tuple) for states in (layer.keys, layer.values))
            for layer in (past_key_values.layers if length else ())
        )
        output = super().forward(
            input_ids=input_ids,
            past_key_values=past or None,
            inputs_embeds=inputs_embeds,
            use_cache=caches,
            return_dict=True,
            **inputs,
        )
        cache = LegacyCache() if caches and past_key_values is None else past_key_values
        for index, layer in enumerate(output.past_key_values or ()):
            cache.update(*(states.permute(self.from_tuple)[:, :, length:] for states in layer), index)
        return BaseModelOutputWithPast(self.hidden(output.last_hidden_state), cache if caches else None)

    def inputs(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, length: int = 0) -> dict[str, Any]:
        """What the forward pass takes besides the tokens after the first `length` of `input_ids`."""
        if "attention_mask" in inspect.signature(super().forward).parameters:
            return {"attention_mask": attention_mask}
        if attention_mask is not None and _is_false(attention_mask[:, 0].all()):
            raise UserError(
                f"{self.config._name_or_path}: this modeling_baichuan.py does not read attention_mask, so that prompts "
                "of several lengths cannot be answered at once: answer one at a time, or take a later file"
            )
        return {}

    def hidden(self, states: torch.Tensor) -> torch.Tensor:
        return states


def _is_false(condition: torch.Tensor) -> bool:
    """Not of a dry run's tensors, which have no values."""
    return not isinstance(condition, FakeTensor) and not condition


class PrefixBody(Body):
    """ChatGLM-6B: what is before the token that begins the answer sees itself whole, at a position of its own."""

    to_tuple, from_tuple = (2, 0, 1, 3), (1, 2, 0, 3)

    def inputs(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, length: int = 0) -> dict[str, Any]:
        """A mask (B, 1, t, T), True where a token is not seen, and positions (B, 2, t) in the prompt and the answer."""
        config, index = self.config, torch.arange(input_ids.shape[1], device=input_ids.device)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        real = real[:, : input_ids.shape[1]].bool()
        begins = (input_ids == config.bos_token_id) & real
        if self.training and _is_false(begins.any(1).all()):
            raise UserError(
                f"{config._name_or_path}: ChatGLM-6B generates behind [gMASK] <sop>, and a row has none; train it on "
                "conversations (sft) with its chat template"
            )
        start = torch.where(begins.any(1), begins.int().argmax(1), real.int().argmax(1))[:, None]
        is_prompt = index < start
        seen = ((index[:, None] >= index) | is_prompt[:, None]) & real[:, None]
        position = (real.cumsum(1) - 1).clamp(min=0)
        masks = [((input_ids == token) & real).int() for token in (config.gmask_token_id, config.mask_token_id)]
        mask = torch.where(masks[0].any(1), masks[0].argmax(1), masks[1].argmax(1))[:, None]
        first = torch.where(is_prompt, position, position.gather(1, mask) * begins.any(1)[:, None])
        second = torch.where(is_prompt, 0, index - start + 1)
        return {
            "attention_mask": ~seen[:, None, length:],
            "position_ids": torch.stack([first, second], dim=1)[..., length:],
        }

    def hidden(self, states: torch.Tensor) -> torch.Tensor:
        return states.transpose(0, 1)


class CausalLM(Constructed):
    """Mixin of the whole model: the interface that all others of version 5 have."""

    body: type[Body] = Body
    _set_gradient_checkpointing = PreTrainedModel._set_gradient_checkpointing
    _update_model_kwargs_for_generation = GenerationMixin._update_model_kwargs_for_generation

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any):
        config.gradient_checkpointing = False  # Baichuan's have (False,), which is true
        super().__init__(config, *args, **kwargs)
        body = self.base_model
        body.__dict__.pop("gradient_checkpointing", None)
        body.__class__ = subclass(type(body), self.body)
        for layer in body.layers:
            layer.__class__ = subclass(type(layer), GradientCheckpointingLayer)
        self.normalizes_head = not isinstance(self.lm_head, nn.Linear)
        if self.normalizes_head:
            rows, columns = self.lm_head.weight.shape
            self.lm_head = nn.Linear(columns, rows, bias=False)
        for parameter in self.parameters():  # some of which may have a dtype of the code's choice
            parameter.data = parameter.data.to(torch.get_default_dtype())

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.normalizes_head:  # in each forward pass; losses that read the weight of the head take it as it is
            weight = model.lm_head.weight
            with torch.no_grad(), gather_params_ctx([weight], modifier_rank=0):  # where ZeRO's stage 3 shards it
                weight.copy_(nn.functional.normalize(weight.float()))
        return loaded

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        output = self.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
        )
        logits = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        loss = None if labels is None else ForCausalLMLoss(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss, logits, output.past_key_values)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        length = past_key_values.get_seq_length() if past_key_values is not None else 0
        inputs = {"input_ids": input_ids[:, length:], "past_key_values": past_key_values, "use_cache": use_cache}
        return inputs | self.base_model.inputs(input_ids, attention_mask, length)

    @staticmethod
    def _reorder_cache(past_key_values: Cache, beam_idx: torch.Tensor) -> Cache:
        past_key_values.reorder_cache(beam_idx)
        return past_key_values


class PrefixLM(CausalLM):
    body = PrefixBody
    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any):
        if "empty_init" in inspect.signature(type(self).__bases__[1].__init__).parameters:
            kwargs["empty_init"] = False  # which would take memory for weights that are then loaded
        super().__init__(config, *args, **kwargs)
        for layer in self.base_model.layers:
            rotary, dtype = layer.attention.rotary_emb, self.lm_head.weight.dtype
            rotary.precision = dtype
            if dtype != torch.float16:  # bfloat16's eight bits do not hold positions
                rotary.inv_freq = rotary.inv_freq.float()
