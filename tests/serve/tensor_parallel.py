"""Run by torchrun in `test_tensor_parallel.py`: prints what rank 0 generates, as JSON."""

import json
import sys

from swift_sd import LayerSet, SwiftConfig
from swift_sd.serve.lockstep import follow, join, leave
from swift_sd.serve.spec import Spec, load

PROMPTS = ["abc", "def f(x):", "Why is the sky blue?"]


def main(folder: str) -> None:
    rank = join(2)
    config = SwiftConfig(layer_set=LayerSet(4, [1], []), max_draft_tokens=4, early_stop=0.0)
    spec = Spec({"tiny": folder}, dtype="float32", device="cpu", config=config, tensor_parallel=2)
    (served,) = load(spec, lambda message: None)
    if rank:
        follow({"tiny": served.swift})
        return
    answers, accepted = [], 0
    assert served.leader is not None
    for sampling in ({"do_sample": False}, {"do_sample": True, "temperature": 0.8, "top_k": 0}):
        for prompt in PROMPTS:
            inputs = served.swift.encode(prompt)
            arguments = {**sampling, "max_new_tokens": 24}
            decoding = served.leader.start("tiny", served.swift, inputs, arguments, 7)
            tokens = []
            while (step := decoding.next()) is not None:
                tokens += step.tokens
                accepted += step.accepted
            decoding.close()
            answers.append(tokens)
    left = served.leader.start("tiny", served.swift, inputs, arguments, 7)
    left.next()
    left.close()  # in the middle
    weight = next(served.swift.model.model.layers[1].mlp.parameters())
    is_split = tuple(getattr(weight, "_local_tensor", weight).shape) != (48, 32)
    print(json.dumps({"answers": answers, "accepted": accepted, "is_split": is_split}))
    served.leader.end()


if __name__ == "__main__":
    main(sys.argv[1])
    leave()
