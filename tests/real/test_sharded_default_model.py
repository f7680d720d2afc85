"""The default model's real weights in bfloat16, split over three processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from swift_sd.loading import load

pytestmark = pytest.mark.real


def test_three_processes_draft_with_what_each_has_rounded():
    load()  # which converts it, if nobody has; several processes cannot
    path = os.pathsep.join(each for each in sys.path if each)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run(
        [sys.executable, *command, str(Path(__file__).parent / "sharded.py")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert told["bits"] == 8
    assert 0 < told["relative_error"] < 0.2
    assert told["rate"] > 0.5
    assert told["found"] == told["expected"] or not told["exact"]
