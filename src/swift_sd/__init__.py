"""Self-speculative decoding of Hugging Face causal language models: faster, and exactly the same.

swift = swift_sd.Swift(model, tokenizer)
out = swift.generate(**inputs, max_new_tokens=128)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swift_sd.adapting.profile import Profile
    from swift_sd.config import SwiftConfig
    from swift_sd.errors import (
        ConfigError,
        LayerSetError,
        ModelNotFound,
        ProfileError,
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
    "Profile",
    "ProfileError",
    "PromptError",
    "Swift",
    "SwiftConfig",
    "SwiftError",
    "UnsupportedArgument",
    "UnsupportedModel",
]

_HOMES = {
    "Profile": "swift_sd.adapting.profile",
    "LayerSet": "swift_sd.model.layer_set",
    "Swift": "swift_sd.swift",
    "SwiftConfig": "swift_sd.config",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch and transformers take seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "swift_sd.errors")), name)
