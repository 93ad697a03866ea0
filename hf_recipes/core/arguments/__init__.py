"""The command line and configuration files as dataclasses."""
