"""Fixtures that several test modules share; test modules cannot import each other."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

# Test processes share the cores, and so do the commands they start: several threads in each would
# only wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from swift_sd import LayerSet, Swift, SwiftConfig
from swift_sd.cache_folder import cache_root
from swift_sd.model import exact_linear
from swift_sd.model.compiled_draft import CompiledDraft
from swift_sd.model.draft_view import DraftView
from swift_sd.model.target import Target
from swift_sd.native.compiler import load_kernels
from swift_sd.testing.families import tiny_model

SPECIAL = ("<pad>", "<s>", "</s>")
CHARACTERS = [chr(code) for code in range(ord(" "), ord("~") + 1)] + ["é", "ß", "\n"]


# A shared machine may stall in any example.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """In case torch was imported before this file."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def short_trial() -> Iterator[None]:
    """A tenth of the numbers that tell whether sums are exact in several rows.

    Of matrices as small as these a trial takes a third of a second, which is what a `Swift` takes
    in all. In float32 a thousandth of the numbers would do.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_linear, "OUTPUTS", exact_linear.OUTPUTS // 10)
        yield


@pytest.fixture
def whole_trial(monkeypatch) -> None:
    """All of them: where bfloat16 has to be bitwise identical."""
    monkeypatch.setattr(exact_linear, "OUTPUTS", 10 * exact_linear.OUTPUTS)


@pytest.fixture(scope="session")
def browser() -> tuple[str, str]:
    """Chromium and its driver. CI must have them; who has not sees these tests left out."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        leave = pytest.fail if os.environ.get("SWIFT_SD_BROWSER") == "required" else pytest.skip
        leave("no browser here: apt-get install chromium chromium-driver")
    return chromium, driver


@pytest.fixture(scope="session")
def processor() -> str | None:
    """The kind of processor, if the order in which torch takes its sums there is known."""
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None
    if "AuthenticAMD" not in facts or " avx2" not in facts:
        return None
    if " avx512_bf16" in facts:
        return "AMD with AVX512_BF16"
    return None if " avx512f" in facts else "AMD without AVX-512"


@pytest.fixture
def own_cache(monkeypatch, tmp_path_factory) -> Path:
    """A cache directory in which nothing is but the kernels, which take seconds to compile."""
    folder = tmp_path_factory.mktemp("cache")
    load_kernels()
    for kernels in cache_root().glob("kernels-*.so"):
        (folder / kernels.name).symlink_to(kernels)
    monkeypatch.setenv("SWIFT_SD_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Each test starts from the same global random state, whatever ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def clock(monkeypatch) -> Callable[[], float]:
    """For `Swift(clock=…)`: forwards take their time by it, and nothing else takes any.

    One of the target takes a second. One of a draft takes the same, less a share for what it
    skips: all attention is a third of it, all MLPs are two.
    """
    now = 0.0

    def lasting(kind: type, name: str, seconds: Callable[[Any], float]) -> None:
        method = getattr(kind, name)

        def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal now
            now += seconds(self)
            return method(self, *args, **kwargs)

        monkeypatch.setattr(kind, name, timed)

    def of_draft(view: Any) -> float:
        skipped = view.layer_set
        return 1 - (len(skipped.attention) + 2 * len(skipped.mlp)) / (3 * skipped.depth)

    for name in ("prefill", "verify"):
        lasting(Target, name, lambda target: 1.0)
    for draft in (DraftView, CompiledDraft):
        lasting(draft, "forward", of_draft)
    return lambda: now


@pytest.fixture
def clocked(monkeypatch, clock) -> None:
    """Every `Swift` goes by `clock`, whoever makes it."""
    monkeypatch.setattr(Swift, "__init__", partialmethod(Swift.__init__, clock=clock))


@pytest.fixture
def prompt() -> Callable[..., torch.Tensor]:
    """`prompt(length, seed)`: random ids `[1, length]` without special tokens."""

    def make(length: int = 12, seed: int = 0, vocabulary: int = 101) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(3, vocabulary, (1, length), generator=generator)

    return make


@pytest.fixture(scope="session")
def shared_models() -> dict[str, PreTrainedModel]:
    """What `model_of` has built."""
    return {}


@pytest.fixture(scope="session")
def model_of(shared_models) -> Callable[..., PreTrainedModel]:
    """`model_of(family)`: a tiny model, built once; tests must not change it."""

    def get(family: str = "llama") -> PreTrainedModel:
        if family not in shared_models:
            shared_models[family] = tiny_model(family)
        return shared_models[family]

    return get


@pytest.fixture(scope="session")
def swift_of(shared_models) -> Callable[..., Swift]:
    """`swift_of(model, skip)`: drafts 6 tokens at a time and never stops early.

    `skip` is the name of a `LayerSet` constructor: with "none" all drafts are accepted, with
    "every" hardly any. Nothing is learned by it, so that of the models of `model_of` all tests
    share one; `fresh=True` makes one that has not generated anything.
    """
    shared: dict[tuple[int, str], Swift] = {}

    def make(model: PreTrainedModel, skip: str = "unified", fresh: bool = False, **kwargs) -> Swift:
        key = (id(model), skip)
        is_shared = not (fresh or kwargs) and any(model is one for one in shared_models.values())
        if is_shared and key in shared:
            return shared[key]
        layer_set = getattr(LayerSet, skip)(model.config.get_text_config().num_hidden_layers)
        settings = SwiftConfig(layer_set=layer_set, max_draft_tokens=6, early_stop=0)
        swift = Swift(model, config=settings, **kwargs)
        if is_shared:
            shared[key] = swift
        return swift

    return make


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; as many as the tiny models' vocabulary has."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *CHARACTERS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
