"""Two processes that work together, as gloo joins them on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
START = """
import sys

import torch
import torch.distributed.nn.functional  # or its defaults would hold the group, and threads of it, to the very end
from torch import distributed as dist, nn

import reparam

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
"""
END = """
dist.destroy_process_group()
"""


def run_two(body: str, folder: Path) -> None:
    """Runs `body` in two processes of one group, with `rank` and `folder` set; both have to end well."""
    code = START + textwrap.dedent(body) + END
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(rank), str(folder)], env=env, cwd=folder) for rank in (0, 1)
    ]
    assert [process.wait(timeout=240) for process in running] == [0, 0]
