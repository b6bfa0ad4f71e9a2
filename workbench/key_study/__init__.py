"""The sub-key experiment: how keys start, whether dead ones are revived, and what that is worth."""
