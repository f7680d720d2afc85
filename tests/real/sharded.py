"""Run by torchrun in `test_sharded_default_model.py`: what three processes answer, as JSON."""

import json

import torch.distributed as dist

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.loading import load
from swift_sd.serve.lockstep import join, leave


def main() -> None:
    rank = join(3)
    model, tokenizer = load(tensor_parallel=3)
    depth = model.config.num_hidden_layers
    swift = Swift(model, tokenizer, SwiftConfig(LayerSet.none(depth), 4, early_stop=0.5))
    asked = {**swift.encode("The sky is blue because"), "do_sample": False, "max_new_tokens": 16}
    expected, found = model.generate(**asked), swift.generate(**asked)
    trace = swift.trace.summary()
    if rank == 0:
        told = {"expected": expected.tolist(), "found": found.tolist(), "exact": trace["exact"]}
        view = trace["draft_view"]
        print(json.dumps({**told, **view, "rate": trace["acceptance_rate"]}), flush=True)
    dist.barrier()


if __name__ == "__main__":
    main()
    leave()
