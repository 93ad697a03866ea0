"""Loading models and tokenizers, adapters, and conversions."""
