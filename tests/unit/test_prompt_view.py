"""Reading a prompt with a look at it is reading it."""

import pytest
import torch

from swift_sd.adapting.prompt_view import PromptView
from swift_sd.model.kv_cache import KVCache, attention_windows
from swift_sd.model.sublayers import find_sublayers
from swift_sd.model.target import Target


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "bloom", "mixtral", "phi"])
def test_logits_and_cache_are_the_same_to_the_bit(model_of, prompt, family, chunk):
    model = model_of(family)
    view = PromptView(model, find_sublayers(model))
    read = []
    for reader in (None, view):
        cache = KVCache(attention_windows(model.config))
        logits = Target(model, reader=reader).prefill(prompt(), cache, chunk)
        read.append([logits, *(part for buffer in cache.buffers for part in buffer.tail(12))])
    assert all(map(torch.equal, *read))
    assert view.mean.shape == (model.config.hidden_size,)


def test_the_mean_is_that_of_directions_behind_the_last_layer(model_of, prompt):
    model = model_of("llama")
    view = PromptView(model, find_sublayers(model))
    Target(model, reader=view).prefill(prompt(), KVCache([None] * 5), 7)
    seen = []
    watch = model.model.layers[-1].register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        model(prompt())
    watch.remove()
    hidden = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    hidden = hidden.reshape(12, -1)
    expected = torch.nn.functional.normalize(hidden, dim=-1).mean(dim=0)
    torch.testing.assert_close(torch.tensor(view.mean).float(), expected, atol=1e-4, rtol=1e-3)


def test_hooks_of_the_user_are_called_as_before_and_none_are_left_behind(model_of, prompt):
    model, called = model_of("llama"), []
    sublayers = find_sublayers(model)
    layer = model.model.layers[-1]
    watch = layer.register_forward_hook(lambda *_: called.append(True))
    view = PromptView(model, sublayers)
    assert len(layer._forward_hooks) == 1
    Target(model, reader=view).prefill(prompt(), KVCache([None] * 5))
    watch.remove()
    assert called == [True]
    assert not layer._forward_hooks
