"""Every error swift-sd raises on purpose; each message names the cause and the remedy.

    SwiftError
    ├── ModelNotFound        (ValueError)  a name that leads to no causal language model
    ├── UnsupportedModel     (ValueError)  an architecture whose sublayers cannot be skipped safely
    ├── LayerSetError        (ValueError)  a set of skipped sublayers that does not fit the model
    ├── UnsupportedArgument  (ValueError)  an argument of ``generate`` that is refused
    ├── PromptError          (ValueError)  an empty prompt, too long a one, several, refused ones
    ├── ProfileError         (ValueError)  a profile that is damaged, for another model, unwritable
    └── ConfigError          (ValueError)  a setting that is out of range or contradicts another

All of them are ``ValueError`` too: what was passed in is wrong, not what happened afterwards.
"""


class SwiftError(Exception):
    """Base of every error that swift-sd raises on purpose. Catch it to catch them all."""


class ModelNotFound(SwiftError, ValueError):  # noqa: N818 - names the cause, as users read it
    """Raised when a name leads to no causal language model with a tokenizer.

    The name is unknown, the Hub cannot be reached, the folder is incomplete, or the model is of
    another kind. Correct the name, or fetch what the message says is missing.
    """


class UnsupportedModel(SwiftError, ValueError):  # noqa: N818
    """Raised when replacing a sublayer by a stub would not leave its layer the identity.

    Skipping it would then draft nonsense. Use another architecture, or ``model.generate`` alone.
    """


class LayerSetError(SwiftError, ValueError):
    """Raised when a set of skipped sublayers cannot belong to the model.

    An index is out of range, or the set was learned on a model of another shape. Use a set made
    for this model, or none for the default.
    """


class UnsupportedArgument(SwiftError, ValueError):  # noqa: N818
    """Raised when an argument of ``generate`` cannot be honoured without changing the output.

    Drop the argument, or call ``model.generate`` without swift-sd for this request.

    Attributes:
        argument: Name of the refused argument, as ``generate`` spells it.
    """

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(message)
        self.argument = argument

    def __reduce__(self) -> tuple[type["UnsupportedArgument"], tuple[str, str]]:
        # The default rebuilds an exception from `args`, which lacks `argument`.
        return type(self), (self.argument, str(self))


class PromptError(SwiftError, ValueError):
    """Raised when a prompt cannot be read.

    It is empty, leaves no room in the context, has more than one row, or the model's chat template
    refuses it. Pass one non-empty prompt that is shorter than the model's context, in an order of
    roles that the template takes; loop over several.

    Attributes:
        is_too_long: it was not even encoded, because it cannot fit into the context.
    """

    def __init__(self, message: str, *, is_too_long: bool = False) -> None:
        super().__init__(message)
        self.is_too_long = is_too_long


class ProfileError(SwiftError, ValueError):
    """Raised when a profile cannot be used or written.

    It is damaged, of another version, or was learned with another model; or there is no room or
    right to write it. Use another file; without a profile swift-sd learns while it runs.
    """


class ConfigError(SwiftError, ValueError):
    """Raised when a setting is out of range, unknown, or contradicts another.

    The message names the setting and the values it takes.
    """
