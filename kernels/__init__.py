"""The memory operations of MIDUS (arXiv 2512.13751), one folder an op.

Shape letters: T tokens, H heads, D head size, n sub-keys a half, N = n*n slots, k slots read,
r latent size.
"""

from typing import TYPE_CHECKING

from kernels.lazy import import_when_used

if TYPE_CHECKING:
    from kernels.backend import BackendUnavailable, use_backend
    from kernels.headwise_memory import headwise_memory
    from kernels.latent_bag import latent_bag
    from kernels.product_key_select import product_key_select

__all__ = [
    "BackendUnavailable",
    "headwise_memory",
    "latent_bag",
    "product_key_select",
    "use_backend",
]

import_when_used(
    __name__,
    {
        "kernels.backend": ("BackendUnavailable", "use_backend"),
        "kernels.headwise_memory": ("headwise_memory",),
        "kernels.latent_bag": ("latent_bag",),
        "kernels.product_key_select": ("product_key_select",),
    },
)
