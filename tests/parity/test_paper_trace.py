"""The paper's setting, round by round, beside its method written down once more.

Nothing of the package is used but the model, and what is compared: a llama's forward with sublayers
left out, drafting, the tree, acceptance and matchness are written anew, from the paper and what the
published code does. Ends are left out: the published code drafts beyond them.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import silu

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.adapting.paper_search import PaperSearch
from swift_sd.testing.families import tiny_model
from swift_sd.testing.planted import planted_model

NEW, MOST, THRESHOLD, WINDOW = 110, 25, 0.8, 32
NOTHING = ((), ())


class Llama:
    """Its forward, by its weights. `past` has keys and values `[heads, n, width]` of each layer."""

    def __init__(self, model):
        self.base, self.head, config = model.model, model.lm_head.weight, model.config
        self.width, self.epsilon = config.head_dim, config.rms_norm_eps
        self.group = config.num_attention_heads // config.num_key_value_heads
        self.theta = config.rope_parameters["rope_theta"]

    def forward(self, tokens, start=0, past=None, skipped=NOTHING):
        """Logits of `tokens` at the places from `start` on, and keys and values with theirs."""
        hidden = self.base.embed_tokens.weight[torch.tensor(tokens)]
        past = list(past or [None] * len(self.base.layers))
        for index, layer in enumerate(self.base.layers):
            if index not in skipped[0]:
                inside = self.norm(hidden, layer.input_layernorm)
                added, past[index] = self.attention(layer.self_attn, inside, start, past[index])
                hidden = hidden + added
            if index not in skipped[1]:
                inside, mlp = self.norm(hidden, layer.post_attention_layernorm), layer.mlp
                hidden = hidden + mlp.down_proj(silu(mlp.gate_proj(inside)) * mlp.up_proj(inside))
        return self.norm(hidden, self.base.norm) @ self.head.T, past

    def norm(self, hidden, norm):
        return norm.weight * hidden / (hidden.pow(2).mean(-1, keepdim=True) + self.epsilon).sqrt()

    def attention(self, parts, inside, start, past):
        query, key, value = (
            part(inside).view(len(inside), -1, self.width).transpose(0, 1)
            for part in (parts.q_proj, parts.k_proj, parts.v_proj)
        )
        query, key = self.turned(query, start), self.turned(key, start)
        if past is not None:
            key, value = (torch.cat(pair, dim=1) for pair in zip(past, (key, value), strict=True))
        keys, values = (one.repeat_interleave(self.group, dim=0) for one in (key, value))
        scores = query @ keys.transpose(1, 2) / self.width**0.5
        hidden = torch.ones_like(scores[0], dtype=torch.bool)
        hidden = hidden.triu(1 + keys.shape[1] - len(inside))  # what comes later
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return parts.o_proj((weights @ values).transpose(0, 1).flatten(1)), (key, value)

    def turned(self, rows, start):
        speeds = self.theta ** -(torch.arange(0, self.width, 2) / self.width)
        angles = (start + torch.arange(rows.shape[1]))[:, None] * speeds
        cosines, sines = angles.cos(), angles.sin()
        left, right = rows.chunk(2, dim=-1)
        return torch.cat([left * cosines - right * sines, right * cosines + left * sines], dim=-1)


class PaperRounds:
    """One response: each round drafts, verifies and accepts, with the sublayers skipped then."""

    def __init__(self, model, prompt):
        self.llama, self.prompt = Llama(model), prompt
        self.tokens = [*prompt, self.best(prompt)]

    def best(self, tokens):
        return int(self.llama.forward(tokens)[0][-1].argmax())

    def round(self, skipped):
        """Draft length, rows of the tree, accepted tokens, and the tokens that come out."""
        known = len(self.tokens) - 1
        past = self.llama.forward(self.tokens[:-1])[1]  # the full model's
        candidates, last = [], self.tokens[-1]
        for step in range(MOST):
            logits, past = self.llama.forward([last], known + step, past, skipped)
            chances, order = logits[0].softmax(-1).sort(descending=True)
            sure, last = float(chances[0]), int(order[0])
            width = 3 if sure > 0.95 else 5 if sure > 0.8 else 8 if sure > 0.5 else 10
            candidates.append(order[:width].tolist())
            if sure < THRESHOLD:
                break
        chain = [some[0] for some in candidates]
        choices = self.llama.forward([*self.tokens, *chain])[0][known:].argmax(-1).tolist()
        out = []
        for some, choice in zip(candidates, choices, strict=False):
            if choice not in some:
                break
            out.append(choice)
            if choice != some[0]:  # a leaf: nothing was drafted after it
                break
        out.append(self.best([*self.tokens, *out]))
        self.tokens += out
        return len(chain), 1 + sum(map(len, candidates)), len(out) - 1, out

    def matchness(self, skipped):
        """Of the latest tokens, how many a sub-network would have chosen, read at once."""
        start = len(self.tokens) - WINDOW - 1
        past = self.llama.forward(self.tokens[:start])[1]
        logits, _ = self.llama.forward(self.tokens[start:-1], start, past, skipped)
        right = logits.argmax(-1) == torch.tensor(self.tokens[start + 1 :])
        return float(right.double().mean())


def compared(swift, model, ids, skipped_in):
    """Follow a response of `swift` in rounds of our own; how many there were.

    Args:
        skipped_in: from the number of a round and the rounds so far to what drafts skip in it.
    """
    output = swift.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    rounds = PaperRounds(model, ids[0].tolist())
    compared = 0
    for number, step in enumerate(swift.trace.steps[1:]):
        skipped = skipped_in(number, rounds)
        if len(rounds.tokens) - ids.shape[1] + MOST + 1 > NEW:  # an end is near
            break
        ours = (step.drafted, 1 + step.verified, step.accepted, [*step.tokens])
        assert ours == rounds.round(skipped), number
        compared += 1
    count = len(rounds.tokens)
    assert output[0, :count].tolist() == rounds.tokens
    return compared


@pytest.fixture(scope="module")
def models():
    tiny = tiny_model("llama")
    return {"tiny": tiny, "planted": planted_model(tiny, extra_layers=6)[0]}


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny", "planted"])
def test_with_a_given_set_each_round_is_the_papers(models, prompt, name):
    model = models[name]
    depth = model.config.num_hidden_layers
    random = np.random.default_rng(0)
    rounds = 0
    for seed in range(3):
        layers = [*range(1, depth - 1)]
        some = [set(random.choice(layers, len(layers) // 2).tolist()) for _ in range(2)]
        layer_set = LayerSet(depth, *some) if seed else LayerSet.unified(depth)
        config = replace(SwiftConfig.paper(), skip_ratio=None, layer_set=layer_set)
        skipped = (layer_set.attention, layer_set.mlp)
        swift = Swift(model, config=config)
        rounds += compared(swift, model, prompt(20, seed), lambda number, _, s=skipped: s)
    assert rounds > 25


@torch.no_grad()
def test_the_search_scores_and_switches_as_the_papers(models, prompt, monkeypatch):
    """Its candidates are taken as they come; scores and the set in use are found anew."""
    told = []

    class Told(PaperSearch):
        def tell(self, layer_set, score, trials):
            told.append((layer_set, score))
            super().tell(layer_set, score, trials)

    monkeypatch.setattr("swift_sd.adapting.experience.PaperSearch", Told)
    monkeypatch.setattr("swift_sd.adapting.paper_search.GOOD_ENOUGH", 2.0)  # so that it goes on
    model = models["tiny"]
    depth = model.config.num_hidden_layers
    swift = Swift(model, config=SwiftConfig.paper())
    every_second = {*range(1, depth - 1, 2)}
    best = {"skipped": (every_second, every_second), "score": 0.0, "at": 0}
    checked = [0]

    def skipped_in(number, rounds):
        known = len(rounds.tokens) - len(rounds.prompt)
        if number and known >= WINDOW:
            layer_set, score = told[best["at"]]
            best["at"] += 1
            skipped = (layer_set.attention, layer_set.mlp)
            assert score == rounds.matchness(skipped)
            checked[0] += 1
            if score > best["score"]:
                best.update(skipped=skipped, score=score)
        return best["skipped"]

    rounds = 0
    for seed in range(2):
        rounds += compared(swift, model, prompt(20, seed), skipped_in)
        best["at"] = len(told)  # at the end of a response rounds are not compared
        best["score"] = swift._experience._adaptation.search.best_score
        chosen = swift.layer_set
        best["skipped"] = (chosen.attention, chosen.mlp)
    assert rounds > 30
    assert checked[0] > 20
    size = int((depth - 2) * 2 * 0.45)
    for layer_set, _ in told[1:]:
        assert len(layer_set.attention) + len(layer_set.mlp) == size
        assert {*layer_set.attention, *layer_set.mlp} <= {*range(1, depth - 1)}


def test_the_same_history_and_wish_give_the_same_set():
    """What is deterministic of a suggestion: attention first, largest numbers, ties in order."""
    depth, seen = 8, []
    wish = np.array([0.3, 0.9, 0.1, 0.9, 0.2, 0.3, 0.8, 0.0, 0.3, 0.3, 0.95, 0.1])

    def suggest(sets, scores, seed):
        seen.append((sets.copy(), scores.copy()))
        return wish

    search = PaperSearch(depth, 0.5, suggest=suggest)
    history = []
    for turn in range(1, 26):
        candidate = search.ask()
        history.append((candidate, turn / 100))
        search.tell(*history[-1], WINDOW)
    points = dict(enumerate(wish))
    taken = [place for place, _ in sorted(points.items(), key=lambda item: item[1], reverse=True)]
    taken = taken[: int(2 * (depth - 2) * 0.5)]
    attention = {place + 1 for place in taken if place < depth - 2}
    mlp = {place - (depth - 2) + 1 for place in taken if place >= depth - 2}
    assert history[-1][0] == LayerSet(depth, attention, mlp)
    ((sets, scores),) = seen
    for bits, score, (layer_set, told) in zip(sets, scores, history, strict=False):
        skipped = [(index in layer_set.attention) for index in range(1, depth - 1)]
        skipped += [(index in layer_set.mlp) for index in range(1, depth - 1)]
        assert (bits.tolist(), score) == (skipped, told)
