"""A report is one page that needs nothing else, says first what matters, and escapes what it was given."""

import re
from collections import Counter
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt

from precisionlab.runs.drawing import inline_svg
from precisionlab.runs.report import report_page
from precisionlab.runs.results import Claim, Labelled, Result

VOID = {"meta", "wbr", "br"}


class Page(HTMLParser):
    """Checks that every element is closed, and gathers ids, references, tags and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags[tag] += 1
        self.ids += [value or "" for key, value in attrs if key == "id"]
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data

    def values(self, key: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == key]


def example(claims: int = 3) -> Result:
    rows = (
        {"format": "bfloat16", "loss": 0.0123, "loss_low": 0.0119, "loss_high": 0.0128, "steps": 7, "worst": "layer1/bias"},
        {"format": "<b>", "loss": np.nan, "steps": 8, "worst": "-"},
    )
    stated = (
        Claim("slope of <census>", -1.0, -1.02, -1.04, -0.99, True),
        Claim("no slope", "in [-0.05, 0.05]", 0.2, 0.1, 0.3, False),
        Claim("one seed", "> 0", 0.1, np.nan, np.nan, None),
    )
    config = {"formats": ["float32", "bfloat16"], "rate": 0.5, "deep": {"er": [1, 2]}, "nothing": {}}
    provenance = {"versions": {"numpy": "2.0"}, "git": None, "xla_flags": ""}
    arrays = {"x": Labelled(("seed",), np.zeros(16))}
    return Result("demo", config, {"seed": range(16)}, arrays, rows, stated[:claims], "geometry & <no> doubt", provenance)


def curve(colour: str = "C0"):
    figure, ax = plt.subplots()
    ax.plot([0, 1, 2], [0, 1, 0], "o-", color=colour, label="<a> & b")
    ax.imshow(np.eye(2), extent=(0, 2, 0, 1))
    ax.bar([0], [1], hatch="//")
    ax.legend()
    return figure


def test_what_matters_comes_first() -> None:
    drawn = {"A picture": inline_svg(curve(), "one", "A picture")}
    page = report_page(example(), drawn, question="Why?", name="0123", created="now")
    order = ["Why?", "run 0123", "geometry &amp; &lt;no&gt; doubt", "slope of &lt;census&gt;", "A picture", "<svg", "0.0123"]
    places = [page.index(part) for part in [*order, "Configuration", "Provenance"]]
    assert places == sorted(places)
    text = Page(page).text
    assert "Of 3 claims 1 held, 1 did not, and 1 stayed undecided." in text
    assert "the 95 % interval over 16 seeds" in text
    for words in ("-1.02 [-1.04, -0.99]", "in [-0.05, 0.05]", "not held", "float32, bfloat16", "deep.er", "[1, 2]"):
        assert words in text, words
    assert "versions.numpy" in text
    assert "(empty)" in text


def test_the_page_needs_nothing_else() -> None:
    page = report_page(example(), {name: inline_svg(curve(), name, name) for name in ("one", "two")})
    found = Page(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert "http" not in page
    assert "@import" not in page
    for tag, key, value in found.attributes:
        if key in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:")), (tag, value)
        assert not key.startswith("on")
    assert found.tags["style"] == 1  # none of the pictures'


def test_ids_are_unique_and_references_go_somewhere() -> None:
    """Two figures that are the same, and so have the same ids by themselves."""
    found = Page(report_page(example(), {name: inline_svg(curve(), name, name) for name in ("one", "two")}))
    assert len(set(found.ids)) == len(found.ids) > 20
    targets = [value[1:] for value in found.values("href") if value.startswith("#")]
    targets += [name for _, _, value in found.attributes for name in re.findall(r"url\(#(.*?)\)", value)]
    targets += found.values("aria-labelledby")
    assert any(name.startswith("one-") for name in targets)
    assert any(name.startswith("two-") for name in targets)
    assert set(targets) <= set(found.ids)


def test_the_same_run_gives_the_same_bytes() -> None:
    pages = {report_page(example(), {"a": inline_svg(curve(), "one", "a")}) for _ in range(2)}
    assert len(pages) == 1
    assert inline_svg(curve("C1"), "one", "a") not in pages.pop()


def test_pictures_are_named_and_tables_have_headers() -> None:
    found = Page(report_page(example(), {'"loud"': inline_svg(curve(), "one", '"loud"')}))
    (svg,) = [dict((key, value) for tag, key, value in found.attributes if tag == "svg")]
    assert (svg["role"], svg["aria-label"]) == ("img", '"loud"')
    assert re.fullmatch(r"0 0 [0-9.]+ [0-9.]+", svg["viewbox"])
    assert [value for tag, key, value in found.attributes if (tag, key) == ("html", "lang")] == ["en"]
    scopes = Counter(value for tag, key, value in found.attributes if (tag, key) == ("th", "scope"))
    assert scopes == {"col": 4 + 4, "row": 3 + 2 + 4 + 3}
    assert found.tags["h1"] == 1


def test_columns_are_those_asked_for() -> None:
    found = Page(report_page(example(), {}, columns=["loss", "format"]))
    assert "steps" not in found.text
    assert found.text.index("loss") < found.text.index("format")


def test_numbers_stand_to_the_right_and_words_to_the_left() -> None:
    page = report_page(example(), {})
    assert '<td class="number">0.0123 <span class="bounds">[0.0119, 0.0128]</span></td><td class="number">7</td>' in page
    assert '<td class="number">nan</td>' in page
    assert "<td>layer1/bias</td>" in page
    assert '<th scope="row">&lt;b&gt;</th>' in page


@pytest.mark.parametrize("empty", [Result("demo", {}, {}, {}), Result("demo", {}, {}, {}, verdict="so")])
def test_parts_that_are_not_there_have_no_heading(empty: Result) -> None:
    text = Page(report_page(empty, {})).text
    assert "Verdict" in text
    assert (empty.verdict or "The experiment gave none.") in text
    for title in ("Claims", "Figures", "Table", "Configuration", "Provenance"):
        assert title not in text
    assert "demo" in text


def test_one_seed_promises_no_interval() -> None:
    result = Result("demo", {}, {"seed": [0]}, {}, rows=({"a": 1.0},))
    assert "interval" not in Page(report_page(result, {})).text


@pytest.mark.parametrize("name", ["", "1st", "a b", 'a"', "é"])
def test_names_that_cannot_begin_an_id_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="allowed are letters, digits and hyphens"):
        inline_svg(curve(), name, "x")
    plt.close("all")


def test_a_figure_is_closed() -> None:
    before = plt.get_fignums()
    inline_svg(curve(), "one", "x")
    assert plt.get_fignums() == before
    assert mpl.rcParams["svg.hashsalt"] is None


def test_a_claim_of_two_sides_is_nobodys_failure() -> None:
    sided = Claim("share", "geometry: 1; representation: 0", 0.0, 0.0, 0.0, None, "representation")
    alone = Claim("slope", 2.0, 2.0, 1.9, 2.1, True)
    text = Page(report_page(Result("demo", {}, {}, {}, claims=(sided, sided, alone)), {})).text
    assert "geometry: 1; representation: 0" in text
    assert "not held" not in text
    assert "Of 1 claims 1 held, 0 did not, and 0 stayed undecided. Of 2 with a prediction of each side 2 say" in text
