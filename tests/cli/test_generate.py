import json
import subprocess
import sys

import pytest
import torch
import transformers

from swift_sd.cli.generate import _read_prompt
from swift_sd.cli.settings import draft_config
from swift_sd.config import SwiftConfig
from swift_sd.errors import PromptError
from swift_sd.swift import Swift

PROMPT = "w1 w2 w3 w5 w8"


def greedy(folder, prompt_ids, **arguments) -> list[int]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.generation_config = transformers.GenerationConfig(eos_token_id=2, pad_token_id=0)
    ids = torch.tensor([prompt_ids])
    output = model.generate(ids, do_sample=False, **arguments)
    return output[0, ids.shape[1] :].tolist()


@pytest.fixture
def tokenizer(model_folder):
    return transformers.AutoTokenizer.from_pretrained(model_folder)


def test_prints_what_transformers_generates(swift_sd, model_folder, tokenizer):
    messages = [{"role": "user", "content": PROMPT}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    ids = greedy(model_folder, prompt, max_new_tokens=20)
    status, out, err = swift_sd("generate", PROMPT, "-m", model_folder, "-n", 20)
    assert status == 0
    assert out.rstrip() == tokenizer.decode(ids, skip_special_tokens=True)
    assert f"{len(ids)} tokens" in err
    assert "warn" not in err.lower()
    assert "Loading" not in err


def test_raw_continues_the_text_as_it_stands(swift_sd, model_folder, tokenizer):
    ids = greedy(model_folder, tokenizer(PROMPT)["input_ids"], max_new_tokens=20)
    _, out, _ = swift_sd("generate", "--raw", "--json", "-n", 20, "-m", model_folder, PROMPT)
    assert json.loads(out)["token_ids"] == ids


def test_a_model_without_chat_template_continues_the_text(
    swift_sd, folder_without_template, model_folder
):
    options = ("generate", PROMPT, "--json", "-n", 8, "-m")
    _, bare, _ = swift_sd(*options, folder_without_template)
    _, raw, _ = swift_sd(*options, model_folder, "--raw")
    assert json.loads(bare)["token_ids"] == json.loads(raw)["token_ids"]


def test_json_is_one_object_with_the_agreed_keys(swift_sd, model_folder):
    status, out, _ = swift_sd("generate", PROMPT, "--json", "-n", 12, "-m", model_folder)
    assert status == 0
    assert out.count("\n") == 1
    facts = json.loads(out)
    assert {
        *("new_tokens", "seconds", "tokens_per_second", "target_forwards", "tokens_per_forward"),
        *("acceptance_rate", "accepted_histogram", "time_split", "layer_set", "drafters"),
        *("text", "token_ids", "prompt_tokens", "model"),
    } <= set(facts)
    assert facts["new_tokens"] == len(facts["token_ids"])
    assert facts["prompt_tokens"] == 10  # user : … </s> assistant :
    assert facts["model"] == str(model_folder)


def test_drafting_and_plain_give_the_same_tokens(swift_sd, model_folder, layer_set_file):
    options = ("generate", PROMPT, "--json", "-n", 40, "--ignore-eos", "-m", model_folder)
    _, plain, _ = swift_sd(*options, "--plain")
    _, drafted, _ = swift_sd(*options, "--max-draft-tokens", 4, "--early-stop", 0)
    _, chosen, _ = swift_sd(*options, "--layer-set", layer_set_file)
    plain, drafted, chosen = map(json.loads, (plain, drafted, chosen))
    assert plain["token_ids"] == drafted["token_ids"] == chosen["token_ids"]
    assert len(plain["token_ids"]) == 40
    assert plain["drafters"] == {}
    assert drafted["drafters"]
    assert chosen["layer_set"] == {"attention": [2], "mlp": [1, 3]}


@pytest.mark.parametrize("bits", [4, 8, 16, "auto"])
def test_the_precision_of_drafts_can_be_chosen(bits):
    config = draft_config(False, None, None, None, None, str(bits), False)
    assert config == SwiftConfig(draft_bits=bits)


def test_in_16_bits_no_copies_are_made(swift_sd, model_folder):
    options = ("generate", PROMPT, "--json", "-n", 8, "-m", model_folder, "--dtype", "bfloat16")
    copied = json.loads(swift_sd(*options, "--draft-bits", 8)[1])
    own = json.loads(swift_sd(*options, "--draft-bits", 16)[1])
    assert copied["draft_view"]["bits"] == 8
    assert copied["draft_view"]["bytes"] > 0
    assert own["draft_view"]["bits"] == 16
    assert own["draft_view"]["bytes"] == 0
    assert own["token_ids"] == copied["token_ids"]


def test_a_seed_repeats_a_sample(swift_sd, model_folder):
    options = ("generate", PROMPT, "--json", "-n", 16, "--ignore-eos", "-m", model_folder)
    sampling = ("--temperature", 5, "--top-k", 50, "--top-p", 0.99, "--seed")
    first, again, other = (
        json.loads(swift_sd(*options, *sampling, seed)[1])["token_ids"] for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("prompt", [(), ("-",)])
def test_reads_the_prompt_from_stdin(swift_sd, model_folder, prompt):
    options = ("--json", "-n", 4, "-m", model_folder)
    _, given, _ = swift_sd("generate", PROMPT, *options)
    _, piped, _ = swift_sd("generate", *prompt, *options, stdin=PROMPT + "\n")
    assert json.loads(piped)["token_ids"] == json.loads(given)["token_ids"]


def test_ends_behind_a_stop_string(swift_sd, model_folder):
    options = ("generate", PROMPT, "--json", "--ignore-eos", "-n", 30, "-m", model_folder)
    words = json.loads(swift_sd(*options)[1])["text"].split()
    stopped = json.loads(swift_sd(*options, "--stop", words[5], "--stop", "never")[1])["text"]
    first = next(index for index, word in enumerate(words) if words[5] in word)
    assert stopped.split() == words[: first + 1]


@pytest.mark.parametrize("folder", ["short", "stretched"])
def test_says_when_the_context_shortens_the_answer(swift_sd, request, folder):
    model = request.getfixturevalue(f"folder_with_{folder}_context")
    options = ("generate", PROMPT, "--ignore-eos", "--json", "-m", model)
    status, out, err = swift_sd(*options)
    facts = json.loads(out)
    assert status == 0
    assert facts["prompt_tokens"] + facts["new_tokens"] == 24
    assert "note" in err
    assert "14" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plain", "--layer-set", "x.json"], ["--plain", "--layer-set"]),
        (["--plain", "--max-draft-tokens", "3"], ["--plain", "--max-draft-tokens"]),
        (["--plain", "--early-stop", "0.5"], ["--plain", "--early-stop"]),
        (["--plain", "--keep-copies"], ["--plain", "--keep-copies"]),
        (["--plain", "--draft-bits", "16"], ["--plain", "--draft-bits"]),
        (["--draft-bits", "5"], ["draft_bits is '5'", "auto, 4, 8, 16"]),
        (["--draft-bits", "few"], ["draft_bits is 'few'", "auto, 4, 8, 16"]),
        (["--top-p", "0.9"], ["--top-p", "--temperature"]),
        (["--top-k", "9"], ["--top-k", "--temperature"]),
        (["--raw", "--system", "w1"], ["--raw", "--system"]),
        (["--temperature", "nan"], ["temperature", "nan"]),
        (["--temperature", "inf"], ["temperature", "inf"]),
        (["--temperature", "-1"], ["temperature"]),
        (["--temperature", "1", "--top-p", "1.5"], ["top-p", "1.5"]),
        (["--temperature", "1", "--top-p", "nan"], ["top-p", "nan"]),
        (["--temperature", "1", "--top-k", "0"], ["top-k"]),
        (["--max-new-tokens", "0"], ["max-new-tokens"]),
        (["--max-draft-tokens", "1000"], ["max_draft_tokens", "256"]),
        (["--early-stop", "nan"], ["early-stop", "nan"]),
        (["--seed", "-1"], ["seed"]),
        (["--stop", ""], ["--stop"]),
        (["--layer-set", "missing.json"], ["missing.json"]),
        (["--dtype", "int3"], ["int3"]),
        (["--device", "abacus"], ["abacus"]),
        (["--nonsense"], ["--nonsense", "--help"]),
        (["w1", "w2"], ["w2"]),
    ],
)
def test_refuses_before_any_work(swift_sd, refused, model_folder, arguments, words):
    prompt = [] if arguments[0].startswith("w") else [PROMPT]
    refused(swift_sd("generate", *prompt, "-m", model_folder, *arguments), *words)


@pytest.mark.parametrize("json_flag", [(), ("--json",)])
@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_refuses_an_empty_prompt(swift_sd, refused, model_folder, prompt, json_flag):
    refused(swift_sd("generate", prompt, "-m", model_folder, *json_flag), "empty")
    refused(swift_sd("generate", "-m", model_folder, *json_flag, stdin=prompt), "empty")


def test_refuses_bytes_that_are_no_text(swift_sd, refused, model_folder):
    refused(swift_sd("generate", "-m", model_folder, stdin=b"w1 \xff"), "UTF-8")
    refused(swift_sd("generate", "w1 \udcff", "-m", model_folder), "UTF-8")


def test_refuses_a_prompt_beyond_the_context(swift_sd, refused, folder_with_short_context):
    long = "w1 " * 40
    refused(swift_sd("generate", long, "-m", folder_with_short_context), "context is 24")


def test_refuses_a_layer_set_of_another_model(swift_sd, refused, model_folder, tmp_path):
    path = tmp_path / "set.json"
    path.write_text('{"depth": 9, "attention": [2], "mlp": []}')
    refused(swift_sd("generate", PROMPT, "-m", model_folder, "--layer-set", path), "9")


def test_refuses_an_unknown_model(swift_sd, refused):
    refused(swift_sd("generate", PROMPT, "-m", "./nowhere"), "./nowhere")


def test_refuses_a_system_message_without_template(swift_sd, refused, folder_without_template):
    options = ("generate", PROMPT, "-m", folder_without_template, "--system", "w1")
    refused(swift_sd(*options), "template")


def test_asks_for_a_prompt_on_a_terminal(monkeypatch):
    class Terminal:
        isatty = staticmethod(lambda: True)

    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(PromptError, match="no prompt"):
        _read_prompt(None, raw=False)


def interrupt_after(monkeypatch, count: int) -> None:
    """Let Ctrl-C arrive in the middle of the answer's step number `count`."""
    steps = Swift.steps

    def some_steps(self, *args, **kwargs):
        for number, step in enumerate(steps(self, *args, **kwargs)):
            if number == count:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(Swift, "steps", some_steps)


def test_an_interrupted_answer_keeps_its_text_and_figures(swift_sd, model_folder, monkeypatch):
    options = ("generate", PROMPT, "-m", model_folder, "-n", 20, "--plain")
    _, whole, _ = swift_sd(*options)
    interrupt_after(monkeypatch, 3)
    status, out, err = swift_sd(*options)
    assert status == 130
    assert out.split() == whole.split()[:3]
    assert "tokens/s" in err


def test_an_interrupted_answer_is_valid_json(swift_sd, model_folder, monkeypatch):
    interrupt_after(monkeypatch, 3)
    status, out, _ = swift_sd("generate", PROMPT, "-m", model_folder, "--plain", "--json")
    assert status == 130
    assert len(json.loads(out)["token_ids"]) == 3


def test_a_real_interrupt_ends_with_130_and_no_traceback(interrupted, model_folder):
    options = ("generate", "-m", model_folder, "--plain", "-n", 245, "--ignore-eos", "--raw")
    status, out, err = interrupted(*options, PROMPT)
    assert status in (0, 130)  # 0 where the signal came too late
    assert out
    assert "Traceback" not in err


def test_a_closed_pipe_ends_it_quietly(model_folder):
    command = [sys.executable, "-m", "swift_sd", "generate", PROMPT, "-m", str(model_folder)]
    arguments = [*command, "-n", "200", "--ignore-eos"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        err = process.stderr.read().decode()
    assert err == ""
    assert process.returncode == 1


@pytest.mark.parametrize("raw", [(), ("--raw",)])
def test_a_byte_order_mark_on_stdin_is_no_part_of_the_prompt(swift_sd, model_folder, raw):
    options = ("--json", "-n", 4, "-m", model_folder, *raw)
    _, given, _ = swift_sd("generate", PROMPT, *options)
    _, piped, _ = swift_sd("generate", *options, stdin=b"\xef\xbb\xbf" + PROMPT.encode())
    assert json.loads(piped)["token_ids"] == json.loads(given)["token_ids"]


def test_a_byte_order_mark_alone_is_no_prompt(swift_sd, model_folder):
    status, _, err = swift_sd("generate", "-m", model_folder, stdin=b"\xef\xbb\xbf\n")
    assert status == 2
    assert "empty" in err
