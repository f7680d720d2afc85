import pytest

from swift_sd.swift import Swift


@pytest.fixture
def heard(monkeypatch) -> list[list[dict[str, str]]]:
    """The conversations that the model was asked to continue."""
    conversations = []
    encode = Swift.encode

    def note(self, prompt):
        conversations.append(prompt)
        return encode(self, prompt)

    monkeypatch.setattr(Swift, "encode", note)
    return conversations


def roles(conversation: list[dict[str, str]]) -> list[str]:
    return [message["role"] for message in conversation]


def test_keeps_the_conversation(swift_sd, model_folder, heard):
    options = ("chat", "-m", model_folder, "-n", 6, "--system", "w9")
    status, out, err = swift_sd(*options, stdin="w1 w2\n\nw3\n/exit\nw4\n")
    assert status == 0
    assert list(map(roles, heard)) == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
    ]
    assert heard[1][2]["content"] == out.splitlines()[0]
    assert err.count("tokens/s") == 2


def test_drafts_need_no_copies_of_the_weights(swift_sd, model_folder, monkeypatch):
    configs, make = [], Swift.__init__

    def made(self, model, tokenizer, config, *more):
        configs.append(config)
        make(self, model, tokenizer, config, *more)

    monkeypatch.setattr(Swift, "__init__", made)
    status, _, _ = swift_sd("chat", "-m", model_folder, "--draft-bits", 16, stdin="")
    assert status == 0
    assert [config.draft_bits for config in configs] == [16]


def test_the_end_of_stdin_ends_the_chat(swift_sd, model_folder):
    status, out, err = swift_sd("chat", "-m", model_folder, "-n", 4, stdin="w1")
    assert status == 0
    assert len(out.splitlines()) == 1
    assert "error" not in err


def test_reset_forgets_all_but_the_system_message(swift_sd, model_folder, heard):
    options = ("chat", "-m", model_folder, "-n", 4, "--system", "w9")
    swift_sd(*options, stdin="w1\n/reset\nw1\n")
    assert heard[0] == heard[1]


def test_its_other_commands(swift_sd, model_folder, heard):
    lines = "/help\n/report\nw1\n/report\n/nonsense w1\n"
    status, _, err = swift_sd("chat", "-m", model_folder, "-n", 6, stdin=lines)
    assert status == 0
    assert len(heard) == 1
    assert "/reset" in err
    assert "nothing was answered yet" in err
    assert "plain" in err  # the report's verdict
    assert "no command /nonsense" in err


def test_says_when_the_conversation_no_longer_fits(swift_sd, folder_with_short_context, heard):
    options = ("chat", "-m", folder_with_short_context, "-n", 8)
    lines = "w1 w2 w3\n" + "w1 " * 30 + "\n/reset\nw5\n"
    status, out, err = swift_sd(*options, stdin=lines)
    assert status == 0
    assert "context is 24" in err
    assert "/reset" in err
    assert len(out.splitlines()) == 2
    assert roles(heard[2]) == ["user"]


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(
    swift_sd, model_folder, heard, monkeypatch
):
    steps = Swift.steps

    def two_steps(self, *args, **kwargs):
        iterator = steps(self, *args, **kwargs)
        yield next(iterator)
        yield next(iterator)
        raise KeyboardInterrupt

    monkeypatch.setattr(Swift, "steps", two_steps)
    options = ("chat", "-m", model_folder, "--plain", "-n", 20)
    status, out, err = swift_sd(*options, stdin="w1 w2\nw3\n")
    assert status == 0
    assert heard[1][1] == {"role": "assistant", "content": out.splitlines()[0].strip()}
    assert len(heard[1][1]["content"].split()) == 2
    assert err.count("stopped") == 2


def test_ctrl_c_before_the_first_token_drops_the_turn(swift_sd, model_folder, heard, monkeypatch):
    def no_steps(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Swift, "steps", no_steps)
    status, _, err = swift_sd("chat", "-m", model_folder, stdin="w1\nw2\n")
    assert status == 0
    assert list(map(roles, heard)) == [["user"], ["user"]]
    assert "Traceback" not in err


def test_ctrl_c_at_the_prompt_ends_the_chat(swift_sd, model_folder, monkeypatch):
    def pressed(prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", pressed)
    assert swift_sd("chat", "-m", model_folder)[0] == 0


def test_a_real_interrupt_leaves_the_chat_usable(interrupted, model_folder):
    options = ("chat", "-m", model_folder, "--plain", "-n", 100)
    status, out, err = interrupted(*options, stdin="w1 w2\nw3\n/exit\n")
    assert status == 0
    assert "Traceback" not in err
    assert out


def test_ctrl_c_during_a_report_leaves_the_chat_usable(swift_sd, model_folder, monkeypatch):
    def pressed(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Swift, "report", pressed)
    lines = "w1\n/report\nw2\n"
    status, _, err = swift_sd("chat", "-m", model_folder, "-n", 4, stdin=lines)
    assert status == 0
    assert err.count("tokens/s") == 2


@pytest.mark.parametrize("arguments", [("--plain", "--early-stop", 0.5), ("--top-p", 0.5)])
def test_refuses_contradictions(swift_sd, refused, model_folder, arguments):
    refused(swift_sd("chat", "-m", model_folder, *arguments), arguments[-2])


def test_refuses_a_model_without_chat_template(swift_sd, refused, folder_without_template):
    refused(swift_sd("chat", "-m", folder_without_template), "chat template", "--raw")


def test_refuses_bytes_that_are_no_text(swift_sd, refused, model_folder):
    refused(swift_sd("chat", "-m", model_folder, stdin=b"\xff\n"), "UTF-8")


def test_a_byte_order_mark_is_no_part_of_the_first_message(swift_sd, model_folder, heard):
    swift_sd("chat", "-m", model_folder, "-n", 4, stdin=b"\xef\xbb\xbfw1\nw2\n")
    assert [messages[-1]["content"] for messages in heard] == ["w1", "w2"]
