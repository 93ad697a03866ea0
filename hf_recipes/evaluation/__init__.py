"""Metrics, batched generation and reports."""
