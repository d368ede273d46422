"""`verify`, `diff` and `passes` on the command line: what they print, their JSON and their exit codes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from reparam.cli.tables import _read_rule
from reparam.passes import every_rule
from support.cli_helpers import TINY, prepare_folder, run, succeed


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working folder with a network and its checkpoint."""
    return prepare_folder(tmp_path, monkeypatch)


# ---- verify and diff ---------------------------------------------------------------------------------------------


def test_verify_accepts_the_conversion_and_refuses_one_other_weight(folder: Path) -> None:
    succeed("convert", *TINY)
    words = ("verify", "tiny.pt", "tiny-fused.pt2", "--arch-a", "cli_nets:tiny", "--trials", "3")
    result = succeed(*words, "--json", "verdict.json")
    assert result.stdout.startswith("tiny.pt and tiny-fused.pt2:\nequivalent")
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["equivalent"] is True
    assert (verdict["a"], verdict["b"], verdict["schema"]) == ("tiny.pt", "tiny-fused.pt2", 1)
    state = torch.load(folder / "tiny.pt")
    state["4.weight"][0, 0, 0, 0] += 1e-3
    torch.save(state, folder / "tiny.pt")
    refused = run(*words, "--json", "-")
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["equivalent"] is False
    assert "reparam: tiny.pt and tiny-fused.pt2 are not the same function: " in refused.stderr
    shown = run(*words)
    assert (shown.exit_code, "NOT equivalent" in shown.stdout) == (1, True)
    assert run(*words, "--quiet").stdout == ""


def test_verify_can_draw_random_weights_for_one_side() -> None:
    succeed("convert", "--arch", "cli_nets:tiny", "--seed", "5")
    words = ("verify", "-", "tiny-fused.pt2", "--arch-a", "cli_nets:tiny", "--no-adversarial")
    assert "equivalent" in succeed(*words, "--seed", "5").stdout
    assert run(*words, "--seed", "6").exit_code == 1


def test_two_programs_need_no_shape() -> None:
    succeed("convert", *TINY)
    succeed("convert", *TINY, "-o", "other.pt2")
    succeed("verify", "tiny-fused.pt2", "other.pt2", "--no-adversarial")
    assert "5 unchanged" not in succeed("diff", "tiny-fused.pt2", "other.pt2", "--full").stdout


def test_a_checkpoint_without_a_shape_takes_it_from_the_program_beside_it() -> None:
    succeed("convert", *TINY)
    succeed("verify", "tiny.pt", "tiny-fused.pt2", "--arch-a", "cli_nets:shapeless", "--no-adversarial")
    succeed("diff", "tiny.pt", "tiny-fused.pt2", "--arch-a", "cli_nets:shapeless")


def test_the_shape_of_a_program_comes_before_the_usual_one_of_an_architecture() -> None:
    succeed("convert", *TINY, "--input-shape", "3,9,11")
    words = ("tiny.pt", "tiny-fused.pt2", "--arch-a", "cli_nets:tiny")
    assert "shapes [1, 3, 9, 11]" in succeed("verify", *words, "--no-adversarial").stdout
    assert "Nx8x9x11" in succeed("diff", *words).stdout


def test_diff_shows_both_graphs_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # a narrow terminal cuts the lines
    succeed("convert", *TINY)
    words = ("diff", "tiny.pt", "tiny-fused.pt2", "--arch-a", "cli_nets:tiny")
    result = succeed(*words)
    assert result.stdout.startswith("tiny.pt and tiny-fused.pt2:\n")
    assert "1 | batch_norm(8, eps=1e-05) | Nx8x16x16" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("3 only left (-), 0 only right (+)")
    report = json.loads(succeed(*words, "--json", "-").stdout)
    assert report["counts"] == {"same": 1, "weights": 1, "changed": 1, "removed": 3, "added": 0}


# ---- passes ------------------------------------------------------------------------------------------------------


def test_passes_lists_every_rule_with_its_equation() -> None:
    text = succeed("passes").stdout
    rows = json.loads(succeed("passes", "--json", "-").stdout)
    names = set(every_rule())
    assert {r["name"] for r in rows} == names
    assert len(rows) == len(names)
    for row in rows:
        assert row["name"] in text
        assert row["doc"].startswith(row["equation"])
        assert "=" in row["equation"] or "is" in row["equation"]


def test_passes_shows_all_about_one_rule() -> None:
    text = succeed("passes", "fold-batch-norm").stdout
    assert "Refuses when" in text
    assert "Source:" in text


def test_options_of_a_rule_are_its_fields() -> None:
    @dataclass(frozen=True)
    class Limited:
        name: ClassVar[str] = "limited"
        limit: int = 3
        kinds: tuple[str, ...] = ("a",)

    assert _read_rule("limited", Limited()).options == {"limit": 3, "kinds": "('a',)"}
