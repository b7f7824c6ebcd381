"""Two processes that share the queries compute what one process computes."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.mark.skipif(sys.platform == "win32", reason="gloo's file rendezvous needs POSIX paths")
def test_two_processes_compute_what_one_does(in_processes, tmp_path):
    outputs = [tmp_path / f"{rank}.json" for rank in range(2)]
    shared = tmp_path / "rendezvous"
    in_processes(SCRIPT, [(rank, 2, shared, output) for rank, output in enumerate(outputs)])
    single = runpy.run_path(str(SCRIPT))["compute"](0, 1)
    extraction = {name for name in single if name.startswith("extraction ")}
    assert len(single) - len(extraction) == 19
    tasks = {f"extraction f1/EET_{number}" for number in range(4)}
    assert tasks | {"extraction held_out_f1", "extraction official_f1"} < extraction
    assert any(0 < value < 1 for value in single.values())
    for output in outputs:
        assert json.loads(output.read_text(encoding="utf-8")) == pytest.approx(single, abs=1e-6)
