"""LoRA adapters: attached to a base, initialized, saved and loaded again."""
