"""Probes of a chat template: it is given messages, and its renderings are compared."""

from hf_recipes.data.chat.templates.probes import repeated_turns, shown_fields, template_probes, thought_style, turn_end

MODULES = (repeated_turns, shown_fields, template_probes, thought_style, turn_end)
