import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", [(), ("generate",), ("chat",), ("inspect",), ("serve",)])
def test_help_loads_neither_torch_nor_transformers(command):
    program = (
        "import sys; from swift_sd.cli.main import main; status = main(sys.argv[1:]);"
        "assert not {'torch', 'transformers'} & set(sys.modules); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: swift-sd" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_without_arguments_it_shows_the_help(swift_sd):
    status, out, _ = swift_sd()
    assert status == 0
    assert "generate" in out


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "swift_sd", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("swift-sd ")


def test_refuses_an_unknown_command(swift_sd, refused):
    refused(swift_sd("genrate"), "genrate")
