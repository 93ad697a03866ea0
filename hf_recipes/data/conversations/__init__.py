"""Messages, and the forms in which rows hold them: turns, calls of tools, thoughts, dialogues as text."""
