"""What a chat template writes: rendered, probed, and read back to the texts of the messages."""
