"""Which models can be drafted with, and which cannot as they are now."""

from __future__ import annotations

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from swift_sd.errors import UnsupportedModel
from swift_sd.model.sharding import has_fsdp, why_not_shardable

SUPPORTED = (
    "swift-sd drafts with decoder-only models whose layers add a separate attention and MLP "
    "sublayer to the residual stream (llama, qwen, mistral, gemma, phi, gpt2, … and their MoE kin)"
)


def refuse_what_cannot_work(model: PreTrainedModel) -> None:
    """Refuse a model whose configuration or state says that it can never be drafted with.

    Raises:
        UnsupportedModel: names the reason, and the remedy where there is one.
    """
    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder:
        raise unsupported(model, "it is an encoder-decoder model")
    if not model.can_generate():
        raise unsupported(model, f"{type(model).__name__} has no language modelling head")
    distributed = getattr(model.config, "distributed_config", None)
    if (getattr(distributed, "pp_size", None) or 1) > 1:
        raise UnsupportedModel(
            "a model cut into pipeline stages cannot draft: a draft is a second module tree over "
            "the same tensors, and no process has them all; load it with tp_size, not pp_size"
        )
    if has_fsdp(model):
        raise UnsupportedModel(
            "a model wrapped in FSDP cannot draft: hooks put its parts together, which a draft "
            "would pass by; load it with tp_size, not fsdp_size"
        )
    processes = getattr(model, "tp_size", None) or 1
    if processes > 1 and (reason := why_not_shardable(model.config, processes)) is not None:
        raise UnsupportedModel(f"{model.config.model_type} cannot be split so: {reason}")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UnsupportedModel(
            "the model is on the meta device and has no weights; load it with from_pretrained first"
        )
    if any("_hf_hook" in module.__dict__ for module in model.modules()):
        raise UnsupportedModel(
            "the model is spread over devices or offloaded; load it on one, e.g. device_map=0"
        )
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        raise unsupported(model, "its attention is in chunks, to which verified rows do not keep")
    if getattr(config, "num_kv_shared_layers", 0) or getattr(config, "kv_sharing_modes", None):
        raise unsupported(model, "some of its layers read the keys and values of other layers")
    foreign = {
        type(layer).__name__
        for layer in DynamicCache(config=config).layers
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer)
    }
    if foreign or getattr(model, "_is_stateful", False):
        kinds = ", ".join(sorted(set(getattr(config, "layer_types", None) or []))) or "recurrent"
        raise unsupported(
            model, f"it keeps a state that drafts cannot be taken back from (layers: {kinds})"
        )


def check_ready(model: PreTrainedModel) -> None:
    """Refuse a model that cannot be drafted with as it is now, though it could be.

    Raises:
        UnsupportedModel: dropout is on, so that what is computed twice would differ; or autocast on
            a CPU; or a module was compiled.
    """
    if model.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        raise UnsupportedModel("autocast is on: leave it, and load the model in the dtype you want")
    if model.training:
        raise UnsupportedModel("the model is in training mode (dropout is on); call model.eval()")
    if any(module._compiled_call_impl is not None for module in model.modules()):
        raise UnsupportedModel("a module was compiled, and copies would not be; load it anew")


def unsupported(model: PreTrainedModel, reason: str) -> UnsupportedModel:
    """The error for a family that is not supported, for this `reason`."""
    return UnsupportedModel(f"{model.config.model_type} is not supported: {reason}. {SUPPORTED}")
