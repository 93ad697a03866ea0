"""Tokenizers as their models were trained with them."""
