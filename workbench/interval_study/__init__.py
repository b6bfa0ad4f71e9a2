"""How often intervals over documents hold, and what flags and lists made of them are worth."""
