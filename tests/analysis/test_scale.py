"""Real sizes: the shape of Llama-3.2-1B with random weights, on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import resource, sys, warnings
sys.path.insert(0, {root!r})
warnings.simplefilter("ignore")
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights
from analysis import head_importance
from analysis.documents import Document, Documents
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
    num_attention_heads=32, num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    max_position_embeddings=131072, rope_theta=500000.0,
)
with no_init_weights():
    model = LlamaForCausalLM(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.fill_(1.0) if parameter.ndim == 1 else parameter.uniform_(-0.03, 0.03)
text = Document("random", torch.randint(0, 128256, (512,)), "0" * 64)
table = head_importance(model, Documents("random", [text], 512), method="gradient")
assert len(table) == 512 and (table["score"] > 0).all()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print("peak GiB", round(peak, 2))
assert peak < 12, peak
"""


@pytest.mark.verify
def test_gradient_importance_of_a_billion_parameters_within_12_gb() -> None:
    script = SCRIPT.format(root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "peak GiB" in done.stdout
    print(done.stdout)
