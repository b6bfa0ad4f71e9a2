"""`midus bench importance`: the exact sweep over all heads against what other tools take for it.

On each model every head's score is verified against TransformerLens, nnsight and plain PyTorch
hooks before a clock runs; then all run in turn. Beside it what gradient importance costs, and
whether a sweep keeps to its memory budget.
"""
