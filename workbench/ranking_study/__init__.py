"""The ranking experiment: how often a race finds the exhaustive top set, and at what cost."""
