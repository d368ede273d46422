"""Names that nothing else has."""

from __future__ import annotations

from reparam.utils import unused_name


def test_a_name_gets_as_few_underscores_as_make_it_new() -> None:
    assert unused_name("a", set()) == "a" and unused_name("a", {"b"}) == "a"
    assert unused_name("a", {"a"}) == "a_" and unused_name("a", {"a", "a_", "a___"}) == "a__"


def test_a_name_that_thousands_have_gets_a_number() -> None:
    taken: set[str] = set()
    for count in range(3000):
        name = unused_name("a", taken)
        assert name not in taken and len(name) <= 9 + len(str(count))
        taken.add(name)
    assert {f"a{'_' * 8}{n}" for n in range(1, 2000)} <= taken
