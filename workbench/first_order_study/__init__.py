"""How well cheap scores find the heads that exact ablation finds: `docs/first-order.md`."""
