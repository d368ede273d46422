"""What a page is made of, in the words of the template: texts, tables and pictures, nothing of networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .charts import Bar, Chart
from .view import View


@dataclass(frozen=True)
class Stat:
    """A count before and after. tone: less, more or same."""

    name: str
    before: str
    after: str
    change: str
    tone: str


@dataclass(frozen=True)
class Table:
    """Rows of texts; the first cell of each heads its row. numbers: indices of columns that are set to the right."""

    caption: str
    head: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    shown_caption: bool = False


@dataclass(frozen=True)
class StageRow:
    """One module in the table of stages and blocks. Pairs are before and after; shares: lengths of bars, in pixels.

    path: below the row that is `depth` - 1 levels deep, which begins with a dot; whole where there is none.
    """

    path: str
    depth: int
    counts: tuple[tuple[str, str], ...]
    macs: tuple[str, str]
    shares: tuple[float, float]
    params: tuple[str, str]


@dataclass(frozen=True)
class RemarkRow:
    """One remark. place: what stands for its module. region: its number in the graphs, None for none."""

    kind: str
    rule: str
    module: str
    node: str
    place: str
    message: str
    region: int | None
    error: str = ""
    bound: str = ""
    macs: str = ""
    params: str = ""


@dataclass
class Section:
    """A section of its own beside those that every page may have."""

    id: str
    title: str
    texts: list[str] = field(default_factory=list)
    chart: Chart | None = None
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)


@dataclass
class Page:
    """A whole page. verb: what made it. into: what became of `title`, or stands beside it; between: the sign for that,
    relation: the word. tone: good, warn, bad or plain. named: the two sides of its tables.
    """

    title: str
    verb: str
    verdict: str
    tone: str = "plain"
    kicker: str = ""
    into: str = ""
    between: str = "\N{RIGHTWARDS ARROW}"
    relation: str = "became"
    named: tuple[str, str] = ("before", "after")
    lead: str = ""
    stats: list[Stat] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    view: View | None = None
    stages: list[StageRow] = field(default_factory=list)
    chains: Table | None = None
    errors: Chart | None = None
    rules: Table | None = None
    sections: list[Section] = field(default_factory=list)
    remarks: list[RemarkRow] = field(default_factory=list)
    footer: str = ""

    @property
    def contents(self) -> list[tuple[str, str]]:
        """The sections that there are: their ids and short names."""
        known = (
            ("graphs", "Graphs", self.view),
            ("stages", "Stages", self.stages or self.chains),
            ("errors", "Errors", self.errors),
        )
        found = [("summary", "Summary"), *((s.id, s.title) for s in self.sections)]
        found += [(i, text) for i, text, there in known if there]
        return [*found, ("remarks", "Remarks")] if self.remarks else found

    @property
    def remark_kinds(self) -> list[tuple[str, int]]:
        """The kinds of remarks and how many there are of each."""
        counts = Counter(r.kind for r in self.remarks)
        return [(kind, counts[kind]) for kind in ("passed", "missed", "analysis") if counts[kind]]

    @property
    def remark_rules(self) -> list[str]:
        """The rules that have remarks, in the order of the alphabet."""
        return sorted({r.rule for r in self.remarks})
