"""The memory layer and its block against DESIGN §3 written out in loops, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from midus_model import upscale
from midus_model.memory import HeadwiseMemory
from tests.models import FAMILIES, HEADS, HIDDEN, KV_HEADS, tiny, tokens
from tests.reference import fill_banks, float64_reference, memories, watched

N_KEYS, TOP_K, LATENT = 4, 3, 8


def grown(family: str, **options: Any) -> Any:
    options = {"num_keys": N_KEYS, "top_k": TOP_K, "latent_dim": LATENT} | options
    return fill_banks(upscale(tiny(family), **options))


def by_hand(
    memory: HeadwiseMemory,
    head_outputs: torch.Tensor,
    heads: list[int],
    slots: list[int] | None = None,
    columns: list[int] | None = None,
) -> torch.Tensor:
    """[T, H*D] head outputs -> [T, H*D] float64: every slot of every head scored, one by one.

    `slots` and `columns`: k and r of each head, where they are not all the memory's own.
    """
    rows, cols, bank, proj = (
        x.detach().double()
        for x in (memory.row_keys, memory.col_keys, memory.bank, memory.head_proj)
    )
    size, n = memory.head_dim, rows.shape[1]
    result = torch.zeros(head_outputs.shape, dtype=torch.float64)
    for t, outputs in enumerate(head_outputs.double()):
        for m, h in enumerate(heads):
            query = outputs[h * size : (h + 1) * size]
            scores = {
                row * n + col: float(query[: size // 2] @ rows[m, row])
                + float(query[size // 2 :] @ cols[m, col])
                for row in range(n)
                for col in range(n)
            }
            k = memory.top_k if slots is None else slots[m]
            best = sorted(scores, key=lambda slot: (-scores[slot], slot))[:k]
            total = sum(math.exp(scores[slot]) for slot in best)
            latent = sum(math.exp(scores[slot]) / total * bank[slot] for slot in best)
            r = bank.shape[1] if columns is None else columns[m]
            result[t, h * size : (h + 1) * size] = latent[:r] @ proj[m, :r]
    return result


@pytest.mark.parametrize("heads", [None, [(1, 0), (1, 2)]], ids=["all", "two"])
@pytest.mark.parametrize("family", ["llama", "qwen3-wide"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_the_layer_equals_the_loops(
    dtype: torch.dtype, family: str, heads: list[tuple[int, int]] | None
) -> None:
    model = grown(family, **({"heads": heads} if heads else {"blocks": [1]})).to(dtype)
    ((_, memory),) = memories(model)
    width = memory.num_heads * memory.head_dim
    inputs = torch.randn(2, 7, width, dtype=dtype)
    with torch.no_grad(), watched(model) as choices:
        out = memory(inputs)
    assert choices.margin > 1e-5
    chosen = [head for _, head in heads] if heads else list(range(HEADS))
    expected = torch.stack([by_hand(memory, row, chosen) for row in inputs])
    assert expected.abs().max() > 0.1
    if family == "qwen3-wide":  # heads do not fill the stream: mixed by a projection
        expected = expected @ memory.out_proj.weight.detach().double().T
    assert out.shape == (2, 7, HIDDEN) and out.dtype == dtype
    assert (out.double() - expected).abs().max() < (1e-5 if dtype == torch.float32 else 1e-12)


UNEVEN = {(1, 0): (4, 8), (1, 1): (1, 8), (1, 2): (2, 3), (1, 3): (3, 5)}  # k and r of each head


def uneven(heads: list[int], slots: bool = True, columns: bool = True) -> tuple[Any, Any]:
    """A model whose memory heads differ, and its memory; the masked rows hold no zeros."""
    chosen = {(1, head): UNEVEN[1, head] for head in heads}
    options: dict[str, Any] = {"heads": list(chosen), "top_k": 4, "latent_dim": 8}
    if slots:
        options["top_k"] = {head: k for head, (k, _) in chosen.items()}
    if columns:
        options["latent_dim"] = {head: r for head, (_, r) in chosen.items()}
    model = grown("llama", **options)
    ((_, memory),) = memories(model)
    return model, memory


@pytest.mark.parametrize("kinds", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("heads", [[0, 1, 2, 3], [0, 2, 3]], ids=["all", "some"])
@torch.no_grad()
def test_heads_of_different_sizes_equal_the_loops(
    heads: list[int], kinds: tuple[bool, bool]
) -> None:
    model, memory = uneven(heads, *kinds)
    sizes = [UNEVEN[1, head] for head in heads]
    k = [k for k, _ in sizes] if kinds[0] else None
    r = [r for _, r in sizes] if kinds[1] else None
    if kinds[1]:
        assert all(memory.head_proj[m, own:].abs().max() == 0 for m, own in enumerate(r) if own < 8)
        torch.nn.init.normal_(memory.head_proj)  # what is masked does not count, zero or not
    inputs, residual = torch.randn(2, 7, HIDDEN), torch.randn(2, 7, HIDDEN)
    with watched(model) as choices:
        out = memory(inputs)
    assert choices.margin > 1e-5
    expected = torch.stack([by_hand(memory, row, heads, k, r) for row in inputs])
    assert expected.abs().max() > 0.1 and (out - expected).abs().max() < 1e-5
    assert torch.equal(memory.added_to(residual, inputs), residual + out)
    seen = {}
    memory.retrieved.register_forward_hook(lambda _, __, found: seen.update(found=found))
    assert (memory(inputs) - out).abs().max() < 1e-6
    weights, slots = seen["found"]
    assert weights.shape == slots.shape == (14, len(heads), 4)
    assert (weights.sum(-1) - 1).abs().max() < 1e-6
    for m, own in enumerate(k or [4] * len(heads)):
        assert (weights[:, m, :own] > 0).all() and (weights[:, m, own:] == 0).all()


def test_what_is_masked_learns_nothing() -> None:
    model, memory = uneven([0, 1, 2, 3])
    ids = tokens(2, 16)
    optimiser = torch.optim.AdamW(memory.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        model(ids, labels=ids).loss.backward()
        for m, (_, r) in enumerate(UNEVEN.values()):
            assert (memory.head_proj.grad[m, r:] == 0).all()
            assert memory.head_proj.grad[m, :r].abs().min() > 0
        optimiser.step()
    for m, (_, r) in enumerate(UNEVEN.values()):
        assert (memory.head_proj[m, r:] == 0).all()
    # a head that reads one slot has nothing to weigh: its keys get no gradient, the others' do
    by_head = memory.row_keys.grad.abs().amax((1, 2))
    assert by_head[1] < 1e-8 and (by_head[[0, 2, 3]] > 1e-7).all()


@torch.no_grad()
def test_a_hook_changes_what_heads_of_different_sizes_read() -> None:
    _, memory = uneven([0, 1, 2, 3])
    inputs = torch.randn(1, 5, HIDDEN)
    first = torch.zeros(5, HEADS, 4)
    first[..., 0] = 1
    memory.retrieved.register_forward_hook(lambda _, __, found: (first, 0 * found[1] + 7))
    values = torch.einsum("r,mrd->md", memory.bank[7], memory.head_proj)
    assert (memory(inputs) - values.flatten()).abs().max() < 1e-5


def test_uniform_sizes_take_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ((_, memory),) = memories(grown("llama", blocks=[1]))
    monkeypatch.setattr(memory, "select", lambda *_: pytest.fail("selected apart"))
    memory(torch.randn(1, 5, HIDDEN))
    assert memory.projections is memory.head_proj


@pytest.mark.parametrize(
    ("heads", "options", "fuses"),
    [
        ([0, 1, 2, 3], {}, True),
        ([0, 2], {}, False),
        ([0, 1, 2, 3], {"output_mixing": "linear"}, False),
        ([0, 1, 2, 3], {"top_k": [1, 3, 2, 3]}, True),
        ([0, 1, 2, 3], {"latent_dim": [8, 3, 8, 8]}, True),
    ],
    ids=["all", "some", "mixed", "slots", "columns"],
)
@torch.no_grad()
def test_the_sum_is_fused_only_where_it_is_the_same(
    heads: list[int], options: dict[str, Any], fuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a kernel could: what stands between the read and the stream is not passed over."""
    pairs = [(1, head) for head in heads]
    given = {
        name: dict(zip(pairs, value, strict=True)) if isinstance(value, list) else value
        for name, value in options.items()
    }
    ((_, memory),) = memories(grown("llama", heads=pairs, **given))
    asked: list[Any] = []
    monkeypatch.setattr("midus_model.memory.can_fuse", lambda *given: not asked.append(given))
    inputs, residual = torch.randn(2, 5, HIDDEN), torch.randn(2, 5, HIDDEN)

    def difference() -> float:
        expected = residual + memory(inputs)
        return float((memory.added_to(residual, inputs) - expected).abs().max())

    assert difference() < 1e-6 and bool(asked) == fuses
    memory.retrieved.register_forward_hook(lambda _, __, found: (0.5 * found[0], found[1]))
    assert difference() < 1e-6
    asked.clear()
    memory.out.register_forward_hook(lambda _, __, found: 2 * found)
    assert difference() < 1e-6 and not asked


def test_where_a_memory_starts() -> None:
    """Keys as Lample et al. (2019) draw them, +-(D/2)^-1/2; projections of variance 1/r."""
    config = grown("llama", blocks=[1], num_keys=64, latent_dim=8).config
    sizes = {"num_keys": 64, "top_k": [3] * HEADS, "latent_dim": [8, 8, 2, 8]}
    for given in (None, sizes):
        memory = HeadwiseMemory(config, None, given)
        memory.requires_grad_(False).reset_parameters()
        bound = (HIDDEN / HEADS / 2) ** -0.5
        for keys in (memory.row_keys, memory.col_keys):
            assert keys.shape == (HEADS, 64, HIDDEN // HEADS // 2)
            assert 0.99 * bound < keys.max() <= bound and -bound <= keys.min() < -0.99 * bound
            assert keys.std() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert memory.bank.abs().max() == 0
        assert memory.head_proj[[0, 1, 3]].std() == pytest.approx(8**-0.5, rel=0.15)
        own = 8 if given is None else 2
        assert memory.head_proj[2, :own].std() == pytest.approx(own**-0.5, rel=0.4)
        assert given is None or memory.head_proj[2, 2:].abs().max() == 0


def test_bf16_values_given_the_chosen_slots() -> None:
    """Scores are fp32 whatever the input, so bf16 rounds the values and leaves the slots alone."""
    model = grown("llama", blocks=[1])
    ((_, memory),) = memories(model.bfloat16())
    inputs = torch.randn(1, 16, HIDDEN).bfloat16()
    with torch.no_grad():
        out = memory(inputs)[0]
    expected = by_hand(memory, inputs[0], list(range(HEADS)))
    relative = (out.double() - expected).norm() / expected.norm()
    assert out.dtype == torch.bfloat16 and relative < 1e-2


def test_chosen_heads_write_their_own_slices_only() -> None:
    model = grown("llama", heads=[(2, 1), (2, 3)])
    ((layer, memory),) = memories(model)
    seen: dict[str, torch.Tensor] = {}
    memory.out.register_forward_pre_hook(lambda _, args: seen.__setitem__("out", args[0]))
    with torch.no_grad():
        model(tokens(2, 9))
    size = memory.head_dim
    written = [
        bool(seen["out"][..., h * size : (h + 1) * size].abs().max() > 0) for h in range(HEADS)
    ]
    assert layer == 3 and written == [False, True, False, True]


def rotated(x: torch.Tensor, position: int, theta: float) -> torch.Tensor:
    """RoPE of one head's vector [D] at a position."""
    half = len(x) // 2
    result = torch.empty_like(x)
    for i in range(half):
        # Hugging Face keeps the frequencies in fp32
        frequency = float(torch.tensor(1.0) / torch.tensor(theta) ** torch.tensor(i / half))
        cos, sin = math.cos(position * frequency), math.sin(position * frequency)
        result[i] = x[i] * cos - x[i + half] * sin
        result[i + half] = x[i + half] * cos + x[i] * sin
    return result


def normed(x: torch.Tensor, norm: Any) -> torch.Tensor:
    return norm.weight * x / math.sqrt(float((x * x).mean()) + norm.variance_epsilon)


def attention_by_hand(attention: Any, hidden: torch.Tensor, window: int | None) -> torch.Tensor:
    """Attn' of [T, d]: grouped causal attention, one head and position at a time -> [T, H*D]."""
    size, theta = attention.head_dim, attention.config.rope_parameters["rope_theta"]

    def heads_of(projection: Any, count: int, norm: str, rotate: bool) -> list[list[torch.Tensor]]:
        found = []
        for t, x in enumerate(hidden):
            vectors = list((projection.weight @ x).view(count, size))
            if hasattr(attention, norm):
                vectors = [normed(v, getattr(attention, norm)) for v in vectors]
            found.append([rotated(v, t, theta) if rotate else v for v in vectors])
        return found

    queries = heads_of(attention.q_proj, HEADS, "q_norm", True)
    keys = heads_of(attention.k_proj, KV_HEADS, "k_norm", True)
    values = heads_of(attention.v_proj, KV_HEADS, "", False)
    result = torch.zeros(len(hidden), HEADS * size, dtype=hidden.dtype)
    for t in range(len(hidden)):
        first = 0 if window is None else max(0, t - window + 1)
        for h in range(HEADS):
            g = h * KV_HEADS // HEADS
            scores = [float(queries[t][h] @ keys[s][g]) / size**0.5 for s in range(first, t + 1)]
            weights = torch.tensor(scores, dtype=hidden.dtype).softmax(0)
            mixed = sum(w * values[first + i][g] for i, w in enumerate(weights))
            result[t, h * size : (h + 1) * size] = mixed
    return result


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_block_equals_the_design_by_hand(family: str) -> None:
    """M(x) = x + concat_h(o_h), from the block's input to its output."""
    model = float64_reference(grown(family, blocks=[1]))
    window = 5 if family == "mistral" else None
    if window:
        model.config.sliding_window = window
        for block in model.model.layers:
            block.self_attn.sliding_window = window
    block = model.model.layers[2]
    seen: dict[str, torch.Tensor] = {}

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> None:
        seen["input"] = args[0] if args else kwargs["hidden_states"]
        seen["output"] = output

    block.register_forward_hook(keep, with_kwargs=True)
    with watched(model) as choices:
        model(tokens(1, 11))
    assert choices.margin > 1e-5
    x = seen["input"][0]
    normal = torch.stack([normed(row, block.input_layernorm) for row in x])
    written = by_hand(
        block.memory, attention_by_hand(block.self_attn, normal, window), list(range(HEADS))
    )
    if block.memory.out_proj is not None:
        written = written @ block.memory.out_proj.weight.T
    assert written.abs().max() > 0.1
    assert (seen["output"][0] - (x + written)).abs().max() < 1e-10
