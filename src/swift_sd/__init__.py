"""Self-speculative decoding of Hugging Face causal language models: faster, and exactly the same."""

from swift_sd.config import SwiftConfig
from swift_sd.errors import (
    ConfigError,
    LayerSetError,
    ModelNotFound,
    PromptError,
    SwiftError,
    UnsupportedArgument,
    UnsupportedModel,
)
from swift_sd.model.layer_set import LayerSet
from swift_sd.swift import Swift

__all__ = [
    "ConfigError",
    "LayerSet",
    "LayerSetError",
    "ModelNotFound",
    "PromptError",
    "Swift",
    "SwiftConfig",
    "SwiftError",
    "UnsupportedArgument",
    "UnsupportedModel",
]
