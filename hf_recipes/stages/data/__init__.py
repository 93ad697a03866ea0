"""Rows that are made while a stage trains."""
