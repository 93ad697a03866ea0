"""Errors, settings, files, the data ledger and processes; imports nothing else of this package."""
