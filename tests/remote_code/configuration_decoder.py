from transformers import PretrainedConfig


class DecoderConfig(PretrainedConfig):
    model_type = "baichuan"

    def __init__(self, gradient_checkpointing=False, use_cache=True, tie_word_embeddings=False, **kwargs):
        self.gradient_checkpointing = (gradient_checkpointing,)
        self.use_cache = use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
