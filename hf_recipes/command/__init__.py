"""The command ``hf-recipes``."""
