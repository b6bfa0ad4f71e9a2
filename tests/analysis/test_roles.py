"""Head roles of models: exact patterns, planted heads, pico's induction heads, the join."""

from __future__ import annotations

import copy
import itertools
import json
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from tokenizers import Tokenizer, models, processors
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from analysis import head_importance
from analysis.documents import Document, Documents, documents
from analysis.roles import by_role, head_roles
from analysis.roles.labels import MEASURED, ROLES, THRESHOLDS
from analysis.roles.null import shuffled
from analysis.roles.probes import delimiter_tokens, ordinary_tokens
from analysis.roles.watch import Sight, watch
from analysis.tables import load, save
from kernels.errors import (
    DataError,
    IncomparableTables,
    MidusError,
    ModelError,
    UnsupportedArchitecture,
)
from midus_model import head_sites, upscale
from tests.models import HEADS, VOCABULARY, tiny, tokens
from tests.reference import fill_banks

FAMILIES = ["llama", "qwen3", "qwen3-wide", "mistral"]


def up_scaled(family: str = "llama", **changes: Any) -> Any:
    return fill_banks(upscale(tiny(family), num_keys=8, top_k=3, latent_dim=8, **changes))


def texts(count: int = 20, length: int = 40, tokenizer: Any = None) -> Documents:
    ids = tokens(count, length, seed=5)
    items = [Document(str(i), row, str(i)) for i, row in enumerate(ids)]
    return Documents("random", items, 64, tokenizer)


def short(model: Any, data: Any = None, **changes: Any) -> pd.DataFrame:
    """Roles from few sequences; without a tokenizer a warning says what is left out."""
    data = texts() if data is None else data
    if data.tokenizer is not None:
        return head_roles(model, data, sequences=4, **changes)
    with pytest.warns(UserWarning, match="no tokenizer, so delimiters are not known"):
        return head_roles(model, data, sequences=4, **changes)


# ---------------------------------------------------------------- patterns


@pytest.mark.parametrize("family", FAMILIES)
def test_patterns_are_what_sdpa_computes(family: str) -> None:
    """Weights times values are the head outputs of the model's own attention, and outputs agree."""
    model, ids = up_scaled(family), tokens(2, 40)
    values: list[torch.Tensor] = []
    outputs: dict[str, torch.Tensor] = {}
    hooks = [
        layer.self_attn.v_proj.register_forward_hook(lambda _, __, out: values.append(out))
        for layer in model.model.layers
    ]
    hooks += [
        getattr(layer, "memory", layer.self_attn.o_proj).register_forward_pre_hook(
            lambda _, args, at=at: outputs.__setitem__(at, args[0])
        )
        for at, layer in enumerate(model.model.layers)
    ]
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        clean = model.model(ids).last_hidden_state
    for hook in hooks:
        hook.remove()

    seen: list[Sight] = []
    _, hidden = watch(model, ids, seen.append)
    torch.testing.assert_close(hidden, clean, rtol=1e-4, atol=1e-5)
    assert [sight.layer for sight in seen] == list(range(len(model.model.layers)))
    for sight in seen:
        assert sight.window == (16 if family == "mistral" else None)
        value = values[sight.layer].unflatten(-1, (2, -1)).transpose(1, 2)  # [B, G, T, D]
        found = sight.patterns @ value.repeat_interleave(HEADS // 2, 1)
        expected = outputs[sight.layer].unflatten(-1, (HEADS, -1)).transpose(1, 2)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_patterns_are_those_of_transformers() -> None:
    model, ids = tiny("qwen3"), tokens(2, 30)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        expected = eager(ids, output_attentions=True).attentions
    seen: list[Sight] = []
    watch(model, ids, seen.append)
    for sight, pattern in zip(seen, expected, strict=True):
        torch.testing.assert_close(sight.patterns, pattern, rtol=0, atol=0)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model = up_scaled()
    shared = tiny("llama", seed=3)
    shared.config = shared.model.config = model.config  # another model on the same object
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    model.model.layers[1].eval()

    def see(sight: Sight) -> None:
        assert not model.training and sight.patterns.shape[1] == HEADS
        if fails and sight.layer == 2:
            raise ZeroDivisionError

    if fails:
        with pytest.raises(ZeroDivisionError):
            watch(model, tokens(), see)
    else:
        watch(model, tokens(), see)
    assert model.config._attn_implementation == shared.config._attn_implementation == "sdpa"
    assert model.training and not model.model.layers[1].training
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


# ---------------------------------------------------------------- planted heads

SIZE, CODE = 32, 24  # a head's dimensions, of which so many hold a token's code
BOS, DELIMITERS = 0, range(1, 20)
PLANTED = {
    (0, 0): "previous_token",
    (0, 1): "duplicate_token",
    (0, 2): "first_token_sink",
    (0, 3): "positional_offset",
    (1, 0): "induction",
    (1, 1): "no role but broad",
    (1, 2): "delimiter",
    (1, 3): "induction without copying",
}


@lru_cache
def tokenizer() -> Any:
    """A start token, punctuation, and words, one token each; every text begins with the first."""
    words = ["<s>", *"!#%&()*,-./:;?@[]_{", *(f"word{i}" for i in range(20, VOCABULARY))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, words[-1]))
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>")


@lru_cache
def planted() -> Any:
    """A Llama of two layers whose heads' roles are set by hand, PLANTED; its MLPs write nothing.

    The stream: a token's code at 0:24, the previous token's at 32:56, what is to be said at 64:88,
    flags of the start token and of delimiters at 96 and 97, 1 at 98, scratch from 104 on. With a
    large RoPE base only the first pairs of dimensions turn fast; codes are kept in the others.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=4 * SIZE, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, head_dim=SIZE, max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12}, attention_bias=True,
        tie_word_embeddings=False, bos_token_id=BOS, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    turns = model.model.rotary_emb.inv_freq  # [SIZE / 2]
    slow = [*range(4, SIZE // 2), *range(SIZE // 2 + 4, SIZE)]  # 24 dimensions that hardly turn
    codes = torch.randn(VOCABULARY, CODE, generator=torch.Generator().manual_seed(0)).sign()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for norm in (model.model.norm, *(layer.input_layernorm for layer in model.model.layers)):
            norm.weight.fill_(1)
        embedding = model.model.embed_tokens.weight
        embedding[:, :CODE], embedding[:, 98] = codes, 1
        embedding[BOS, 96], embedding[list(DELIMITERS), 97] = 1, 1
        model.lm_head.weight[:, 64 : 64 + CODE] = codes
        for (layer, head), role in PLANTED.items():
            plant(model.model.layers[layer].self_attn, head, role, turns, slow)
    return model


def plant(attention: Any, head: int, role: str, turns: torch.Tensor, slow: list[int]) -> None:
    rows = torch.arange(head * SIZE, (head + 1) * SIZE)
    query, key, value = (getattr(attention, f"{part}_proj") for part in "qkv")
    half = SIZE // 2
    if role in ("previous_token", "positional_offset"):  # cos(turn * (t - s - offset)), summed
        offset = 1 if role == "previous_token" else 3
        key.bias[rows[:half]] = 20
        query.bias[rows[:half]] = 20 * (turns * offset).cos()
        query.bias[rows[half:]] = -20 * (turns * offset).sin()
    elif role in ("first_token_sink", "delimiter"):
        query.bias[rows[slow]] = 20
        key.weight[rows[slow], 96 if role == "first_token_sink" else 97] = 1
    elif role != "no role but broad":  # one token's code against another's
        reads = 0 if role == "duplicate_token" else 32
        scale = 6 if role == "duplicate_token" else 3
        query.weight[rows[slow], range(CODE)] = scale
        key.weight[rows[slow], range(reads, reads + CODE)] = scale
    if role == "duplicate_token":  # and not itself: the fast pairs are lowest at distance 0
        query.bias[rows[:2]], key.bias[rows[:2]] = 9, -9
    copies = {"previous_token": 32, "induction": 64}
    value.weight[rows[:CODE], range(CODE)] = 1
    target = copies.get(role)
    if target is not None:
        attention.o_proj.weight[range(target, target + CODE), rows[:CODE]] = 1
    else:  # it writes what nobody reads
        attention.o_proj.weight[range(104, 104 + CODE), rows[:CODE]] = 0.01


def planted_texts() -> Documents:
    items = []
    for i in range(20):
        generator = torch.Generator().manual_seed(i)
        words = torch.randint(20, VOCABULARY, (48,), generator=generator)
        marks = torch.rand(48, generator=generator) < 0.15
        words[marks] = torch.randint(1, 20, (int(marks.sum()),), generator=generator)
        items.append(Document(str(i), torch.cat([torch.tensor([BOS]), words]), str(i)))
    return Documents("planted", items, 64, tokenizer())


def test_planted_heads_have_the_roles_that_were_planted() -> None:
    table = head_roles(planted(), planted_texts(), sequences=12).set_index(["layer", "head"])
    named = {place: role for place, role in PLANTED.items() if "without" not in role}
    expected = {place: "none" if "broad" in role else role for place, role in named.items()}
    assert {place: table.loc[place, "role"] for place in expected} == expected
    assert table.loc[(0, 0), "offset"] == 1 and table.loc[(0, 3), "offset"] == 3
    copier, silent = table.loc[(1, 0)], table.loc[(1, 3)]
    assert min(copier.prefix_matching, silent.prefix_matching) > 0.9
    assert copier.copying > 0.9 and copier.logit_raise > 1 and copier.retrieval > 0.9
    assert silent.role != "induction" and abs(silent.copying) < 0.1 and silent.logit_raise == 0
    assert table.attrs["needle_accuracy"] > 0.9


def test_a_memory_head_is_judged_by_what_it_reads_from_its_bank() -> None:
    """Attention in the block matches prefixes; whether that is induction its output decides."""
    model = upscale(planted(), blocks=[1], num_keys=4, top_k=1, latent_dim=4)
    assert head_sites(model)[-1].kind == "memory"
    data = planted_texts()
    fresh = head_roles(model, data, sequences=12)
    fresh = fresh[fresh["kind"] == "memory"].set_index("head")
    assert fresh.loc[0, "prefix_matching"] > 0.9 and (fresh["written"] == 0).all()
    assert (fresh["role"] == "none").all() and (fresh["copying"] == 0).all()

    class SaysWhatItReads(nn.Module):
        """Head h's output, at the stream's slice h: a token's code belongs at 64, slice 2."""

        def forward(self, outputs: torch.Tensor) -> torch.Tensor:
            heads = self.asked.unflatten(-1, (4, SIZE)).clone()
            heads[:, :, [0, 1, 3]] = 0
            return heads.flatten(-2)

    block = model.model.layers[-1]
    out = SaysWhatItReads()
    block.memory.register_forward_pre_hook(lambda _, args: setattr(out, "asked", args[0]))
    block.memory.out.register_forward_pre_hook(lambda _, args: (out(args[0]),))
    # slice 2 of the stream is what is said, and head 2 of the copied layer looks at delimiters:
    # with head 0's queries and keys it looks where induction does
    for part in (block.self_attn.q_proj, block.self_attn.k_proj):
        for tensor in (part.weight, part.bias):
            tensor.data[2 * SIZE : 3 * SIZE] = tensor.data[:SIZE]
    table = head_roles(model, data, sequences=12)
    memory = table[table["kind"] == "memory"].set_index("head")
    assert memory.loc[2, "role"] == "induction" and memory.loc[2, "copying"] > 0.9
    assert (memory.drop(index=2)["role"] == "none").all()
    assert (memory["source_layer"] == 1).all()


# ---------------------------------------------------------------- pico


@lru_cache
def pico_roles() -> pd.DataFrame:
    return head_roles("pico", limit=20, sequences=16, windows=20)


@lru_cache
def pico_induction_importance() -> pd.DataFrame:
    """Exact importance of pico's heads for the second copy of random sequences."""
    vocabulary = np.array(ordinary_tokens(documents_model().config, None))
    rng, items = np.random.default_rng(11), []
    for i in range(20):
        half = rng.choice(vocabulary, 24, replace=False)
        ids = torch.tensor([0, *half, *half])
        items.append(Document(str(i), ids, str(i), scored_from=25))
    return head_importance("pico", Documents("repeats", items, 256), baseline="mean")


@lru_cache
def documents_model() -> Any:
    from midus_model import load as load_model

    return load_model("pico")


def test_picos_induction_heads_are_among_those_whose_ablation_most_hurts_induction() -> None:
    """Every head labelled induction is in the top quarter of all heads by exact mean ablation on
    the second copies of random sequences, with an interval above 0, and of the last layer, where
    all of them are, the labelled ones are exactly the most important."""
    roles, importance = pico_roles(), pico_induction_importance()
    assert importance.attrs["clean_loss"] < 1  # of first copies it is 7.8: the model does induction
    merged = roles.merge(importance[["layer", "head", "score", "ci_low"]], on=["layer", "head"])
    ranks = merged["score"].rank(ascending=False)
    found = merged[merged["role"] == "induction"]
    assert len(found) >= 3
    assert (ranks[found.index] <= len(merged) / 4).all() and (found["ci_low"] > 0).all()
    last = merged[merged["layer"] == 5].sort_values("score", ascending=False)
    assert set(found["layer"]) == {5}
    assert set(last["head"].head(len(found))) == set(found["head"])
    assert "previous_token" in set(merged.loc[ranks <= len(found) + 3, "role"])


def test_pico_table_says_what_was_measured(tmp_path: Any) -> None:
    table = pico_roles()
    assert len(table) == 48 and set(table["role"]) <= {*ROLES, "none"}
    numbers = table[["induction", *MEASURED]]
    errors = table[[f"{name}_stderr" for name in numbers]]
    assert not numbers.isna().any().any() and (errors >= 0).all().all()
    shares = numbers.drop(columns=["logit_raise", "written"])
    assert (shares <= 1 + 1e-6).all().all() and (shares >= -1).all().all()
    assert table["role_score"].isna().equals(table["role"] == "none")
    attrs = json.loads(json.dumps(table.attrs))
    assert attrs["table"] == "head_roles" and attrs["comparisons"] == 48 * 7
    assert attrs["thresholds"] == THRESHOLDS and len(attrs["model_hash"]) == 64
    assert attrs["sequences"] == {
        "kinds": ["repeated", "permuted", "needle"], "each": 16, "length": 256, "reach": 255,
    }  # fmt: skip
    assert attrs["windows"]["read"] == 20 < attrs["windows"]["of"]
    save(table, tmp_path / "roles")
    assert load(tmp_path / "roles").attrs == table.attrs


def test_by_role_sums_importance_and_correlates_it() -> None:
    roles, importance = pico_roles(), pico_induction_importance()
    table = by_role(roles, importance).set_index("role")
    assert list(table.index) == [*ROLES, "none"] and table["heads"].sum() == 48
    np.testing.assert_allclose(table["total"].sum(), importance["score"].sum(), rtol=1e-9)
    of_role = importance.loc[(roles["role"] == "induction").to_numpy(), "score"]
    row = table.loc["induction"]
    assert row["total"] == pytest.approx(of_role.sum())
    assert row["mean"] == pytest.approx(of_role.mean()) and row["heads"] == len(of_role)
    assert row["total_ci_low"] < row["total"] < row["total_ci_high"] and row["total_ci_low"] > 0
    for role in ROLES:
        expected = stats.spearmanr(roles[role], importance["score"]).statistic
        assert table.loc[role, "correlation"] == pytest.approx(expected)
    empty = table[table["heads"] == 0]
    assert len(empty) and empty["mean"].isna().all() and (empty["total"] == 0).all()
    assert np.isnan(table.loc["none", "correlation"])
    shuffled = by_role(roles, importance.sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(shuffled.set_index("role"), table)


# ---------------------------------------------------------------- models, data, errors


def random_labels(seeds: int, scales: tuple[float, ...], data: Documents) -> list[str]:
    """Roles of 16 heads each of random models of every family."""
    found = []
    for family, scale, seed in itertools.product(FAMILIES, scales, range(seeds)):
        table = short(tiny(family, seed=seed, initializer_range=scale), data)
        described = table[["local", "broad", "confident"]]
        assert described.notna().all().all()
        found += table["role"].tolist()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_random_heads_have_no_role(family: str) -> None:
    """They were broad with small weights and confident with large ones, all of them."""
    normed = family.startswith("qwen3")  # which keeps queries and keys as large as they are
    for scale, name in ((0.02, "broad"), (1.0, "broad" if normed else "confident")):
        model = tiny(family, initializer_range=scale)
        table = short(model)
        assert set(table["role"]) == {"none"} and table["delimiter"].isna().all()
        assert (table[name] > 0.5).mean() >= 0.5  # which the columns still say
    pd.testing.assert_frame_equal(table, short(model))
    assert table.attrs["sequences"]["reach"] == (16 if family == "mistral" else 64)


@pytest.mark.verify
@pytest.mark.parametrize("starts", [False, True], ids=["random texts", "texts with a start"])
def test_of_random_heads_fewer_than_one_in_a_hundred_has_a_role(starts: bool) -> None:
    """768 heads: the upper 95% bound of none is 0.4%, of four 1.2%."""
    found = random_labels(4, (0.02, 0.3, 1.0), planted_texts() if starts else texts())
    wrong = [role for role in found if role != "none"]
    bound = stats.beta.ppf(0.95, len(wrong) + 1, len(found) - len(wrong))
    print(f"{len(wrong)} of {len(found)} random heads have a role (upper 95% bound {bound:.2%})")
    assert len(found) == 768 and bound <= 0.01, wrong


def test_mixed_heads_are_heads_of_another_draw_of_the_weights() -> None:
    """Norms of what they look with and write stay, the model stays, and patterns are others."""
    for model in (tiny("qwen3"), up_scaled("llama", heads=[(1, 2), (3, 0)])):
        ids = tokens(1, 30)
        seen: list[Sight] = []
        before = {name: value.clone() for name, value in model.state_dict().items()}

        watch(model, ids, seen.append)
        with shuffled(model, 0):
            watch(model, ids, seen.append)
        with pytest.raises(ZeroDivisionError), shuffled(model, 0):
            raise ZeroDivisionError
        watch(model, ids, seen.append)
        blocks = len(seen) // 3
        assert all(value.equal(before[name]) for name, value in model.state_dict().items())
        for block in range(blocks):
            clean, mixed, again = (seen[block + blocks * run].patterns for run in range(3))
            assert clean.equal(again) and not torch.allclose(clean, mixed, atol=1e-3)
        norms = [  # at the first token, which attends to itself, only values count
            seen[run * blocks].outputs[0, 0].unflatten(-1, (HEADS, -1)).norm(dim=-1)
            for run in range(2)
        ]
        torch.testing.assert_close(norms[0], norms[1])


def test_a_role_must_exceed_what_mixed_heads_score() -> None:
    table = head_roles(planted(), planted_texts(), sequences=12)
    null = table.attrs["null"]
    assert set(null) == set(THRESHOLDS) and null["duplicate_token"] < 0.2
    for role in set(table["role"]) - {"none"}:
        parts = {"induction": ("prefix_matching", "copying")}.get(role, (role,))
        heads = table[table["role"] == role]
        assert all((heads[part] > null[part]).all() for part in parts)


def test_memory_for_chosen_heads_only() -> None:
    model = up_scaled(heads=[(1, 2), (3, 0)])
    table = short(model)
    sites = head_sites(model)
    assert table[["layer", "kind", "head"]].values.tolist() == [
        [site.layer, site.kind, site.head] for site in sites
    ]
    whole = short(up_scaled()).query("kind == 'memory' and layer == 2 and head == 2")
    chosen = table.query("kind == 'memory' and layer == 2")
    pd.testing.assert_series_equal(  # the same attention; what it writes has other banks
        whole["previous_token"].reset_index(drop=True),
        chosen["previous_token"].reset_index(drop=True),
    )


def test_bfloat16_gives_nearly_the_same_scores() -> None:
    wide, narrow = short(tiny()), short(tiny().to(torch.bfloat16))
    looks = [name for name in MEASURED if name not in ("copying", "logit_raise", "retrieval")]
    difference = (wide[looks] - narrow[looks]).abs()
    assert np.isfinite(narrow[[n for n in MEASURED if n != "delimiter"]]).all().all()
    assert difference.max().max() < 0.05


def test_delimiters_are_punctuation_and_white_space() -> None:
    data = documents(["def f(x):\n    return x + 1  # hä?\n\n"] * 20)
    marks = set(delimiter_tokens(data).tolist())
    pieces = {data.tokenizer.decode([token]): token in marks for token in set(data[0].ids.tolist())}
    assert {piece for piece, is_mark in pieces.items() if is_mark} >= {"(", " +", " #"}
    assert not any(is_mark for piece, is_mark in pieces.items() if any(c.isalnum() for c in piece))
    assert pieces["<|endoftext|>"] is False


def test_errors_are_one_clear_line() -> None:
    data = texts()
    for arguments, message in [
        ({"sequences": 1}, "sequences is 1; it must be a whole number of at least 2"),
        ({"windows": True}, "windows is True"),
        ({"thresholds": {"induction": 0.4}}, "no threshold 'induction'; .* prefix_matching"),
        ({"thresholds": {"local": 0.9}}, "no threshold 'local'"),
        ({"thresholds": {"delimiter": 1.5}}, "threshold of delimiter is 1.5"),
    ]:
        with pytest.raises(MidusError, match=message):
            head_roles(tiny(), data, **arguments)
    with pytest.raises(DataError, match="a head sees 8 tokens .* at least 16"):
        head_roles(tiny("mistral", sliding_window=8), data)
    with pytest.raises(ModelError, match="meta device"):
        head_roles(tiny().to("meta"), data)
    with pytest.raises(UnsupportedArchitecture):
        head_roles(nn.Linear(2, 2), data)
    broken = tiny()
    broken.model.layers[1].self_attn.q_proj.weight.data.fill_(torch.nan)
    with pytest.raises(ModelError, match="attention weights of model.layers.1 are not finite"):
        watch(broken, tokens(), lambda _: None)


def test_attention_without_weights_is_refused_by_name() -> None:
    model = tiny()
    attention = model.model.layers[2].self_attn
    forward = attention.forward
    attention.forward = lambda *args, **kwargs: (forward(*args, **kwargs)[0], None)
    with pytest.raises(UnsupportedArchitecture, match=r"model.layers.2.self_attn gives no attent"):
        watch(model, tokens(), lambda _: None)
    attention.forward = lambda *a, **k: (forward(*a, **k)[0], forward(*a, **k)[1] / 2)
    with pytest.raises(UnsupportedArchitecture, match=r"model.layers.2 do not sum to 1 .* 0.5"):
        watch(model, tokens(), lambda _: None)
    assert model.config._attn_implementation == "sdpa"


def test_tables_of_two_models_are_not_joined() -> None:
    roles = short(tiny())
    importance = head_importance(tiny(), texts(), method="taylor")
    assert len(by_role(roles, importance)) == len(ROLES) + 1
    with pytest.raises(IncomparableTables, match="whose weights differ"):
        by_role(roles, head_importance(tiny(seed=1), texts(), method="taylor"))
    with pytest.raises(IncomparableTables, match="of 16 heads and the importance of 15"):
        by_role(roles, importance.iloc[1:])
    raced = importance.assign(by_document=[[np.nan] * 20] + importance["by_document"].tolist()[1:])
    with pytest.raises(MidusError, match="not measured on every document, as when heads are raced"):
        by_role(roles, raced)
    with pytest.raises(MidusError, match="give one of analysis.head_roles"):
        by_role(importance, importance)
    with pytest.raises(MidusError, match="no importance by document"):
        by_role(roles, roles)


def test_progress_runs_to_the_end() -> None:
    steps: list[tuple[int, int, str]] = []
    short(tiny(), progress=lambda *step: steps.append(step))
    counted = {text for _, total, text in steps if total}  # the others are stages and estimates
    assert counted == {"constructed sequences", "documents"}
    assert steps[-1][:2] == (20, 20) and (12, 12, "constructed sequences") in steps
