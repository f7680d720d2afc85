"""Run by torchrun in `test_sharded_models.py`: what two processes find out together, as JSON."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.integrations.tensor_parallel import ColwiseParallel

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.errors import SwiftError
from swift_sd.testing.families import tiny_model

LAYERS, NEW = 2, 24
SIZES = {
    "layers": LAYERS,
    # Two cannot halve 255; some releases of transformers insist that they can.
    "vocab_size": 256 if "validate_param" in vars(ColwiseParallel) else 255,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "head_dim": 32,
    "num_key_value_heads": 2,
}
CASES = (
    *(("llama", "float32", 4), ("llama", "bfloat16", 8), ("qwen2", "bfloat16", 4)),
    *(("phi3", "bfloat16", 8), ("glm4", "float32", 4)),  # which gather, and split again
    ("mixtral", "bfloat16", 8),
)
CONFIG = SwiftConfig(LayerSet.none(LAYERS), 4, early_stop=0.0)


def sharded(whole: PreTrainedModel, folder: Path, dtype: str) -> PreTrainedModel:
    if dist.get_rank() == 0:
        whole.save_pretrained(folder)
    dist.barrier()
    plan = DistributedConfig(tp_size=dist.get_world_size())
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, distributed_config=plan)
    return loaded.eval()


def answer(model, generate, **kwargs) -> list[int]:
    ids = torch.randint(3, 200, (1, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    asked = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, **kwargs}
    return generate(ids, attention_mask=mask, **asked)[0].tolist()


def decoded(model: PreTrainedModel, whole: PreTrainedModel, config: SwiftConfig) -> dict:
    swift = Swift(model, config=config)
    found = answer(model, swift.generate)
    trace = swift.trace.summary()
    return {
        "bits": trace["draft_view"]["bits"],
        "error": trace["draft_view"]["relative_error"],
        "exact": trace["exact"],
        "accepted": trace["accepted_tokens"],
        "is its own": found == answer(model, model.generate),
        "is the whole's": found == answer(whole, whole.generate),
    }


def refusal(make) -> str:
    try:
        make()
    except SwiftError as error:
        return str(error)
    return "not refused"


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    told: dict = {"decoded": {}}
    for family, dtype, bits in CASES:
        whole = tiny_model(family, **SIZES)
        name = f"{family}, {dtype}, {bits} bits"
        model = sharded(whole, folder / name, dtype)
        told["decoded"][name] = decoded(model, whole, replace(CONFIG, draft_bits=bits))
    llama = sharded(tiny_model("llama", **SIZES), folder / "again", "float32")
    swift = Swift(llama, config=replace(CONFIG, keep_copies=True))
    answer(llama, swift.generate)
    if dist.get_rank() == 0:
        told["report"] = swift.report()  # alone
    told["costs"] = swift.costs(8).step  # together
    told["refused"] = {
        "clocks": refusal(lambda: Swift(llama)),
        "max_time": refusal(lambda: answer(llama, swift.generate, max_time=9.0)),
    }
    one_key = tiny_model("llama", **{**SIZES, "num_key_value_heads": 1})
    uneven = sharded(one_key, folder / "uneven", "float32")
    told["refused"]["heads"] = refusal(lambda: Swift(uneven, config=CONFIG))
    whole = tiny_model("llama")
    fully_shard(whole)
    told["refused"]["FSDP"] = refusal(lambda: Swift(whole, config=SwiftConfig.plain()))
    if dist.get_rank() == 0:
        print(json.dumps(told), flush=True)
    dist.barrier()


if __name__ == "__main__":
    from swift_sd.serve.lockstep import leave

    main(Path(sys.argv[1]))
    leave()
