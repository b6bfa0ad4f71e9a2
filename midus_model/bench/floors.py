"""What an op must move and compute: compulsory bytes and FLOPs, in closed form.

Compulsory means that every input is read once and every output written once, of a bank the
distinct rows read. Shape letters as in `shapes.py`; s bytes a number, u distinct rows.
Slots take 8 bytes and weights 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from midus_model.bench.shapes import Shape


@dataclass(frozen=True)
class Floor:
    """Compulsory bytes, and FLOPs at two a multiply-add."""

    bytes: int
    flops: int

    def __add__(self, other: Floor) -> Floor:
        return Floor(self.bytes + other.bytes, self.flops + other.flops)

    def ms(self, bandwidth: float, rate: float) -> float:
        """Milliseconds at a bandwidth in bytes and a rate in FLOPs a second: the larger of both."""
        return 1e3 * max(self.bytes / bandwidth, self.flops / rate)


def select(shape: Shape, tokens: int, s: int, backward: bool = False) -> Floor:
    """Queries and keys in, k weights and slots out; backward also their gradients."""
    queries = tokens * shape.heads * shape.head_dim * s
    keys = shape.heads * shape.num_keys * shape.head_dim * s
    reads = tokens * shape.heads * shape.top_k
    forward = Floor(
        queries + keys + 12 * reads,
        2 * tokens * shape.heads * shape.num_keys * shape.head_dim,
    )
    if not backward:
        return forward
    # Weights, slots and the weights' gradients in; only the k selected keys take part.
    return forward + Floor(2 * (queries + keys) + 16 * reads, 4 * reads * shape.head_dim)


def bag(
    shape: Shape, tokens: int, s: int, distinct: int, slots: int, backward: bool = False
) -> Floor:
    """Distinct rows, slots and weights in, [T, H, r] out; backward a dense gradient of the bank."""
    reads = tokens * shape.heads * shape.top_k
    rows = distinct * shape.latent * s
    values = tokens * shape.heads * shape.latent * s
    forward = Floor(rows + 12 * reads + values, 2 * reads * shape.latent)
    if not backward:
        return forward
    bank = slots * shape.latent * s
    return forward + Floor(values + rows + 16 * reads + bank, 4 * reads * shape.latent)


def memory(shape: Shape, tokens: int, s: int, distinct: int, backward: bool = False) -> Floor:
    """The layer: queries, keys, distinct rows and projections in, [T, H, D] out."""
    stream = tokens * shape.heads * shape.head_dim * s
    keys = shape.heads * shape.num_keys * shape.head_dim * s
    proj = shape.heads * shape.latent * shape.head_dim * s
    rows = distinct * shape.latent * s
    reads = tokens * shape.heads * shape.top_k
    flops = (
        select(shape, tokens, s).flops
        + 2 * reads * shape.latent
        + 2 * tokens * shape.heads * shape.latent * shape.head_dim
    )
    forward = Floor(2 * stream + keys + proj + rows, flops)
    if not backward:
        return forward
    bank = shape.slots * shape.latent * s
    more = (
        4 * reads * shape.head_dim
        + 4 * reads * shape.latent
        + 4 * tokens * shape.heads * shape.latent * shape.head_dim
    )
    return forward + Floor(3 * stream + 2 * (keys + proj) + rows + bank, more)


def feed_forward(shape: Shape, tokens: int, s: int, backward: bool = False) -> Floor:
    """The model's FFN: three matrices in, [T, d] in and out."""
    weights, stream = 3 * shape.hidden * shape.ffn * s, tokens * shape.hidden * s
    forward = Floor(weights + 2 * stream, 6 * tokens * shape.hidden * shape.ffn)
    if not backward:
        return forward
    return forward + Floor(2 * weights + 3 * stream, 2 * forward.flops)


def attention(
    shape: Shape, batch: int, tokens: int, context: int, s: int, backward: bool = False
) -> Floor:
    """Attention without output projection: `tokens` new ones after `context`, causal.

    Backward: weights read again and their gradients written, the input read again, gradients of
    the heads' outputs in and of the input out; two products for each of the forward's.
    """
    width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    rows = batch * tokens
    seen = tokens * context + tokens * (tokens + 1) // 2
    cache = 2 * batch * (context + tokens) * shape.kv_heads * shape.head_dim * s
    weights = shape.hidden * width * s
    stream = rows * (shape.hidden + shape.heads * shape.head_dim) * s
    flops = 2 * rows * shape.hidden * width + 4 * batch * seen * shape.heads * shape.head_dim
    forward = Floor(weights + cache + stream, flops)
    if not backward:
        return forward
    return forward + Floor(2 * weights + stream + rows * shape.hidden * s, 2 * flops)


def block(
    shape: Shape,
    batch: int,
    tokens: int,
    context: int,
    s: int,
    distinct: int,
    backward: bool = False,
) -> Floor:
    """A memory block: attention without output projection, then the layer."""
    layer = memory(shape, batch * tokens, s, distinct, backward)
    return attention(shape, batch, tokens, context, s, backward) + layer


def copied_layer(shape: Shape, batch: int, tokens: int, context: int, s: int) -> Floor:
    """A copied decoder layer, as FFN-replicating methods insert: attention, projection, FFN."""
    rows, width = batch * tokens, shape.heads * shape.head_dim
    projection = Floor(
        width * shape.hidden * s + rows * (width + shape.hidden) * s,
        2 * rows * width * shape.hidden,
    )
    ffn = feed_forward(shape, rows, s)
    return attention(shape, batch, tokens, context, s) + projection + ffn


def break_even(shape: Shape, batch: int, s: int = 2) -> int:
    """Context at which reading the cache makes a decoded memory block as dear as an FFN, in bytes.

    From there on, inserting a block costs more than the FFN it does without, because of attention.
    """
    distinct = min(shape.slots, batch * shape.heads * shape.top_k)
    ffn = feed_forward(shape, batch, s).bytes
    start = block(shape, batch, 1, 0, s, distinct).bytes
    a_token = 2 * batch * shape.kv_heads * shape.head_dim * s
    return max(0, -((start - ffn) // a_token))


def break_even_flops(shape: Shape) -> int:
    """The same in FLOPs, which a batch does not change: context at which attention eats the saving.

    Prefill, bound by FLOPs where it is long, sees half its length on average: twice this.
    """
    saved = feed_forward(shape, 1, 2).flops - block(shape, 1, 1, 0, 2, 1).flops
    return max(0, -(-saved // (4 * shape.heads * shape.head_dim)))
