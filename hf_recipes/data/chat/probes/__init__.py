"""What is learned about a chat template by giving it messages and comparing what it renders."""

from hf_recipes.data.chat.probes import repeated_turns, shown_fields, template_probes, thought_style, turn_end

MODULES = (repeated_turns, shown_fields, template_probes, thought_style, turn_end)
