"""Models in GGUF files, read and converted."""
