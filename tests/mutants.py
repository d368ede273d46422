"""Breaks the sources in small ways, one at a time, and lists the breaks that no test noticed: `make mutants`.

mutmut makes the breaks and runs the tests. This script gives every module a folder of its own in .mutants/, in which
mutmut finds a copy of the sources with one module to break, and the tests that are about this module. So it runs what
matters, and a run that was stopped goes on where it was. Breaks that survived are tried again when a test has changed.

What survives for a good reason is listed in tests/mutants.md.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".mutants"
ROOMS = ("check", "algebra", "rewrite", "passes")

# The tests of a module are in the file of its name, or in all files of its room where there is none. Here are the
# modules with others. The most important modules stand first, and are run first.
TESTS: dict[str, tuple[str, ...]] = {
    "check.rewrite_check": (
        "check/test_samples.py",
        "check/test_compared_sides.py",
        "check/test_affine_regions.py",
        "check/test_rewrite_check.py",
    ),
    "check.region": ("check/test_region.py",),
    "algebra.kernels": ("algebra/test_kernels.py",),
    "algebra.window": ("algebra/test_window.py",),
    "algebra.propagate_forward": (
        "algebra/test_forward_joins.py",
        "algebra/test_forward_stops.py",
        "algebra/test_propagate_forward.py",
        "algebra/test_let_through.py",
        "algebra/test_free_movements.py",
    ),
    "algebra.channel_affine": ("algebra/test_channel_affine.py", "algebra/test_let_through.py"),
    "rewrite.driver": (
        "rewrite/test_accepted.py",
        "rewrite/test_driver_steps.py",
        "rewrite/test_driver_verdicts.py",
        "rewrite/test_driver_accepts.py",
        "rewrite/test_vetoes.py",
    ),
    "rewrite.vetoes": ("rewrite/test_vetoes.py", "rewrite/test_driver_verdicts.py", "rewrite/test_driver_accepts.py"),
    "rewrite.rule": ("rewrite/test_rule.py",),
    "passes.drop_identity": ("passes/test_drop_identity_calls.py",),
    "passes.merge_shared_inputs": ("passes/test_merge_shared_inputs.py",),
    "passes.merge_branches": ("passes/test_merge_branches_calls.py",),
    "check.claim_check": ("check/test_claims.py", "check/test_claim_check.py"),
    "check.judge": ("check/test_judge_runs.py", "check/test_judge_lines.py", "check/test_judge_volumes.py"),
    "check.network_check": (
        "check/test_network_check_judged.py",
        "check/test_network_check_emitted.py",
        "check/test_smaller_images.py",
        "check/test_own_dtype.py",
        "check/test_sizes_of_one.py",
        "check/test_smallest_sizes.py",
        "check/test_running.py",
    ),
    "check.rounds": (
        "check/test_rounds.py",
        "check/test_network_check_emitted.py",
        "check/test_network_check_judged.py",
    ),
    "check.emitted_check": (
        "check/test_network_check_emitted.py",
        "check/test_network_check_judged.py",
        "check/test_network_check.py",
    ),
    "check.few_integers": ("check/test_integer_inputs.py",),
    "check.own_dtype": ("check/test_own_dtype.py",),
    "check.blame": ("check/test_blame_by_trial.py",),
    "check.exactness": ("check/test_error_spreads.py",),
    "check.rounding_bound": (
        "check/test_magnitudes.py",
        "check/test_norm_magnitudes.py",
        "check/test_product_magnitudes.py",
    ),
    "check.values": ("check/test_values.py",),
    "check.output_error": ("check/test_output_error.py",),
    "check.input_plan": ("check/test_input_plan.py",),
    "algebra.fold_affine": ("algebra/test_fold_affine.py",),
    "passes.fold_constants": ("passes/test_fold_constants.py", "passes/test_fold_constants_weights.py"),
    "algebra.propagate_backward": (
        "algebra/test_propagate_backward.py",
        "algebra/test_backward_refusals.py",
        "algebra/test_let_through.py",
    ),
    "algebra.movements": (
        "algebra/test_movements.py",
        "algebra/test_channel_affine.py",
        "algebra/test_free_movements.py",
        "algebra/test_let_through.py",
    ),
    "algebra.route": ("algebra/test_route.py", "algebra/test_let_through.py"),
    "algebra.reductions": ("algebra/test_reductions.py", "algebra/test_let_through.py"),
    "algebra.past_readers": ("passes/test_fold_past_readers.py",),
    "algebra.einsum_scales": ("algebra/test_einsum_scales.py", "algebra/test_let_through.py"),
    "passes.name_activation": ("passes/test_name_activation_calls.py",),
    "passes.scatter_as_cat": ("passes/test_scatter_as_cat_calls.py",),
    "passes.dense_beside_conv": ("passes/test_dense_beside_conv_calls.py",),
    "passes.shrink": ("passes/test_shrink_told.py",),
    "passes.carry_residual": ("passes/test_carry_merges.py",),
}

KILLED, LEFT = "killed", "not checked"


def modules() -> list[str]:
    """Every module of the rooms, the important ones first."""
    folders = [(room, ROOT / "reparam" / room) for room in ROOMS]
    found = [f"{room}.{file.stem}" for room, folder in folders for file in sorted(folder.glob("[!_]*.py"))]
    return [m for m in TESTS if m in found] + [m for m in found if m not in TESTS]


def tests_of(module: str) -> list[str]:
    """Test files, relative to the root."""
    room, name = module.split(".")
    of_its_name = f"{room}/test_{name}.py"
    own = TESTS.get(module, (of_its_name if (ROOT / "tests" / of_its_name).exists() else room,))
    return [f"tests/{path}" for path in own]


def chosen(names: Sequence[str]) -> list[str]:
    """The modules that are called so, or lie in rooms that are called so."""
    unknown = [n for n in names if not any(n in (m, m.split(".")[0]) for m in modules())]
    if unknown:
        sys.exit(f"no module or room is called {', '.join(unknown)}; choose from: {', '.join((*ROOMS, *modules()))}")
    return [m for m in modules() if not names or m in names or m.split(".")[0] in names]


# ---- one module --------------------------------------------------------------------------------------------------


def prepare(module: str) -> Path:
    """Its folder, with fresh copies of the sources (symlinks resolved) and of the tests, and its own settings."""
    folder = WORK / module
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / "reparam", folder / "tests", folder / "mutants" / "tests"):
        shutil.rmtree(old, ignore_errors=True)
    for name in ("reparam", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    settings = (ROOT / "pyproject.toml").read_text("utf-8")
    own = f"only_mutate = {[_source(module)]}\npytest_add_cli_args_test_selection = {tests_of(module)}\n"
    (folder / "pyproject.toml").write_text(settings.replace("[tool.mutmut]\n", "[tool.mutmut]\n" + own), "utf-8")
    return folder


def _source(module: str) -> str:
    return f"reparam/{module.replace('.', '/')}.py"


def digest(module: str) -> str:
    """Changes with the tests of the module and with what they share."""
    files: list[Path] = []
    for path in (*tests_of(module), "tests/support", "tests/conftest.py"):
        files += sorted((ROOT / path).rglob("*.py")) if (ROOT / path).is_dir() else [ROOT / path]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def mutmut(folder: Path, *arguments: str, quiet: bool = False) -> str:
    """What mutmut says. It imports what lies in its folder, whatever else is on the path."""
    command = [str(Path(sys.executable).parent / "mutmut"), *arguments]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE if quiet else None, check=False
    )
    if done.returncode:
        sys.exit(f"mutmut {arguments[0]} failed in {folder}" + (f":\n{done.stdout}" if quiet else ""))
    return done.stdout or ""


def verdicts(module: str) -> dict[str, str]:
    """The verdict on each break, empty before the first run."""
    folder = WORK / module
    if not (folder / "mutants" / f"{_source(module)}.meta").exists():
        return {}
    listing = mutmut(folder, "results", "--all", "true", quiet=True)
    return dict(re.findall(r"^\s*(\S+__mutmut_\d+): (.+)$", listing, re.MULTILINE))


def run(module: str, jobs: int, *, again: bool) -> None:
    """Tries what was not tried yet. All that was not killed is tried again when its tests have changed, or on request.

    That holds for endless loops too: a machine that was busy can make a break look like one.
    """
    seen = digest(module)
    stamp = WORK / module / "tests.sha256"
    changed = stamp.exists() and stamp.read_text() != seen
    doubtful = [name for name, verdict in verdicts(module).items() if verdict not in (KILLED, LEFT)]
    folder = prepare(module)
    if changed:
        (folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
    workers = ("--max-children", str(jobs))
    mutmut(folder, "run", *workers)
    kept = [name for name in doubtful if name in verdicts(module)]
    if kept and (changed or again):
        mutmut(folder, "run", *workers, *kept)
    stamp.write_text(seen)


def report(names: Iterable[str]) -> None:
    """A line of figures for each module, and the survivors."""
    totals: Counter[str] = Counter()
    survivors: list[str] = []
    for module in names:
        found = verdicts(module)
        counts = Counter(found.values())
        totals += counts
        survivors += [name for name, verdict in found.items() if verdict not in (KILLED, "timeout", LEFT)]
        print(f"{module:28}", ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items())) or "not run yet")
    print(f"{'all':28}", ", ".join(f"{n} {verdict}" for verdict, n in sorted(totals.items())))
    print(*survivors, sep="\n")
    if survivors:
        print('`make mutants ARGS="--show NAME"` shows one of them; tests/mutants.md says why some survive.')


def show(name: str) -> None:
    """The break as a diff."""
    module = ".".join(name.split(".")[1:3])
    print(mutmut(WORK / module, "show", name, quiet=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("modules", nargs="*", help="rooms or modules, such as passes or check.region (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="breaks that are tried at the same time")
    parser.add_argument("--again", action="store_true", help="try all but the killed once more")
    parser.add_argument("--report", action="store_true", help="run nothing, say what is known")
    parser.add_argument("--show", metavar="NAME", help="show one break")
    options = parser.parse_args()
    if options.show:
        show(options.show)
        return
    names = chosen(options.modules)
    for module in names if not options.report else ():
        print(f"---- {module}: {', '.join(tests_of(module))}", flush=True)
        run(module, options.jobs, again=options.again)
    report(names)


if __name__ == "__main__":
    main()
