"""Tokenizers: trained on a corpus or extended by it, and models with embeddings for their new tokens."""
