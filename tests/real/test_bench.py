"""The first look that the README proposes, on the default model."""

import json

import pytest

from swift_sd.cli.main import main

pytestmark = pytest.mark.real


def test_a_first_look_covers_all_groups(tmp_path):
    given = ("--suite", "builtin", "--limit", "1", "--max-new-tokens", "32", "--dtype", "float32")
    assert main(["bench", *given, "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["complete"]
    for groups in results["summary"].values():
        assert len(groups) == 8 + 1
        assert all(
            figures["questions"] == 1 for name, figures in groups.items() if name != "overall"
        )
    assert results["summary"]["swift"]["overall"]["identical"] == 8
    assert (tmp_path / "report.html").stat().st_size > 10_000
