"""Behind 8,192 tokens the output is still the model's own."""

from itertools import count

import pytest
import torch

from swift_sd import Swift
from swift_sd.adapting.governor import Governor
from swift_sd.drafting.growth import CostGrowth
from swift_sd.testing.families import tiny_model

pytestmark = pytest.mark.usefixtures("whole_trial")

LENGTH, NEW = 8192, 24
WIDE = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "head_dim": 16}


@pytest.mark.parametrize(
    ("dtype", "arguments"),
    [
        (torch.float32, {"do_sample": False}),
        (torch.bfloat16, {"do_sample": True, "top_k": 4}),
    ],
)
def test_a_prompt_of_8192_tokens(dtype, arguments, monkeypatch, clock):
    # All take turns, whether it pays or not.
    turns = count()
    monkeypatch.setattr(CostGrowth, "pruned", lambda self, tree, **_: tree)
    monkeypatch.setattr(Governor, "_choice", lambda self, promises: next(turns) % len(promises))
    model = tiny_model("llama", **WIDE, max_position_embeddings=LENGTH + NEW).to(dtype)
    noise = torch.Generator().manual_seed(0)
    phrase = torch.randint(3, 100, (1, 32), generator=noise)
    prompt = torch.randint(3, 100, (1, LENGTH - 48), generator=noise)
    prompt = torch.cat([prompt, phrase, phrase[:, :16]], dim=1)
    given = {**arguments, "max_new_tokens": NEW, "eos_token_id": None}
    swift = Swift(model, clock=clock)
    torch.manual_seed(1)
    found = swift.generate(prompt, **given)
    if dtype == torch.bfloat16 and not swift._experience._exact.is_exact:
        pytest.skip("no exact operations on this machine: near-ties may go another way")
    torch.manual_seed(1)
    assert torch.equal(found, model.generate(prompt, **given))
    assert swift.trace.summary()["drafted_tokens"] > 0
