"""Tokenizers of checkpoints of 2023: SentencePiece models and tiktoken ranks as a tokenizer.json."""
