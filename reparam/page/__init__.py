"""The report as one page of HTML that fetches nothing (graphs side by side, errors, remarks, curves), and the same
graphs for Google's Model Explorer.
It reads what the rooms below it have found and measured, and works nothing out about networks itself.
"""

from .analyses import analysis_page
from .benchmarks import bench_page, bench_section
from .comparisons import Shown, diff_page, verify_page
from .conversions import conversion_page
from .explorer import Exploration, explore, explore_rewrites, explore_two
from .parts import Page, Section
from .prunings import prune_page
from .rendering import render, write_page
from .serving import ExplorerServer, find_explorer

__all__ = [
    "Exploration",
    "ExplorerServer",
    "Page",
    "Section",
    "Shown",
    "analysis_page",
    "bench_page",
    "bench_section",
    "conversion_page",
    "diff_page",
    "explore",
    "explore_rewrites",
    "explore_two",
    "find_explorer",
    "prune_page",
    "render",
    "verify_page",
    "write_page",
]
