"""Checkpoints of 2023 in layouts that transformers has no class for, and their conversion to classes that it has."""
