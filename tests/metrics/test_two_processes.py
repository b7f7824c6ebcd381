"""Two processes that share the queries compute what one process computes."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.mark.skipif(sys.platform == "win32", reason="gloo's file rendezvous needs POSIX paths")
def test_two_processes_compute_what_one_does(tmp_path):
    # the children import what this process imports, and need no network to find each other
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    outputs = [tmp_path / f"{rank}.json" for rank in range(2)]
    children = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(rank), "2", tmp_path / "rendezvous", outputs[rank]],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for child in children:
            _, errors = child.communicate(timeout=120)
            assert child.returncode == 0, errors
    finally:
        for child in children:
            child.kill()
            child.wait()
    single = runpy.run_path(str(SCRIPT))["compute"](0, 1)
    extraction = {name for name in single if name.startswith("extraction ")}
    assert len(single) - len(extraction) == 19
    tasks = {f"extraction f1/EET_{number}" for number in range(4)}
    assert tasks | {"extraction held_out_f1", "extraction official_f1"} < extraction
    assert any(0 < value < 1 for value in single.values())
    for output in outputs:
        assert json.loads(output.read_text(encoding="utf-8")) == pytest.approx(single, abs=1e-6)
