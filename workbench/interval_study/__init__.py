"""How often intervals over documents hold, alone and together, and what flags and lists are worth."""
