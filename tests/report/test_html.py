from __future__ import annotations

import base64
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from qi.errors import MissingDependencyError
from qi.ledger import Evaluation, QuantizationReport
from qi.report import html, png

VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects them, their attributes and the visible text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts, self.headings = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data.strip())

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


def test_every_section_is_there_in_its_order(make_report):
    report = make_report(
        3,
        warnings=["few samples"],
        settings={"samples": 32},
        evaluations=[Evaluation(metric="accuracy", float_value=0.9, quantized_value=0.875, samples=8)],
    )
    page = Page(html(report))
    assert page.headings == [
        "Evaluation", "Where the error is", "Layer by layer", "Left in float", "Every tensor", "How it was made"
    ]  # fmt: skip
    for part in ("few samples", "3 of 6 quantized", "-0.025", "block/conv0/kernel", "float: a bias", "samples"):
        assert part in page.text
    assert page.text.index("few samples") < page.text.index("3 of 6 quantized") < page.text.index("Evaluation")
    assert page.tags.count("tr") >= 1 + len(report.rows)


def test_a_report_of_nothing_is_a_page():
    assert Page(html(QuantizationReport(recipe="w8", rows=()))).headings == ["Layer by layer", "Every tensor"]


def test_the_page_needs_nothing_else(nasty_report):
    text = html(nasty_report)
    page = Page(text)
    assert not {"link", "iframe", "object", "base"} & set(page.tags)
    references = [value for _, name, value in page.attributes if name in {"src", "href", "srcset", "data", "action"}]
    assert len(references) == 1
    assert references[0].startswith("data:image/png;base64,")
    assert not re.search(r"https?:|@import|url\(|//[a-z]", text.replace(references[0], ""))


def test_the_plot_is_in_the_page(make_report):
    report = make_report(3)
    encoded = re.search(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html(report)).group(1)
    assert base64.b64decode(encoded) == png(report)


def test_no_text_of_the_report_becomes_markup(nasty_report, nasty, make_report):
    text = html(nasty_report)
    page = Page(text)
    assert "<b>|" not in text
    assert nasty not in text
    assert page.text.count(nasty) >= 10
    assert page.tags.count("script") == 1
    plain_page = Page(html(make_report(2, evaluations=nasty_report.evaluations)))
    assert page.tags.count("b") == plain_page.tags.count("b")
    assert not [entry for entry in page.attributes if entry[1].startswith("on")]


def test_reasons_and_ratios_are_in_the_rows(make_report):
    text = html(make_report(8))
    assert '<td colspan="2" class="reason">float: a bias</td>' in text
    assert 'data-key="3.0"' in text
    assert 'class="bar bad" style="width:6.0%"' in text
    assert 'title="int4 -7..7, scales 0.01 to 0.02"' in text
    assert 'title="scale 0.02"' in text
    assert "? × 8 × 8 × 8" in text


def test_long_lists_fold(make_report):
    page = Page(html(make_report(30)))
    assert page.tags.count("details") == 1
    assert "and 27 more" in page.text


def test_saving_by_suffix(make_report, tmp_path):
    report = make_report(2)
    assert report.save(tmp_path / "r.HTML").read_text(encoding="utf-8") == html(report)
    assert report.save(tmp_path / "r.md").read_text(encoding="utf-8").startswith("# Quantization report")
    assert report.save(tmp_path / "r.png").read_bytes() == png(report)


@pytest.mark.parametrize("module", ["jinja2", "matplotlib.figure"])
def test_a_missing_package_is_named_and_the_old_file_survives(make_report, monkeypatch, tmp_path, module):
    path = tmp_path / "r.html"
    path.write_text("old")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"pip install '.*\[report\]'"):
        make_report(2).save(path)
    assert path.read_text() == "old"


def test_algorithms_are_in_the_head_and_in_the_rows(make_report):
    report = make_report(3)
    rows = list(report.rows)
    rows[0] = replace(rows[0], algorithms="gptq", output_error=0.304)
    text = html(replace(report, rows=tuple(rows)))
    page = Page(text)
    assert "algorithms: gptq (1 of 3 quantized weights)" in page.text
    assert "4 bits symmetric, per channel (axis -1), gptq" in page.text
    assert '<td class="r" data-key="0.304">30.4 %</td>' in text
    assert "out. err: the expected squared error" in page.text
    titles, cells = re.search(r'<table id="rows">.*?</tr>', text, re.DOTALL).group().count("<th"), []
    for line in re.findall(r"<tr.*?</tr>", text.partition('<table id="rows">')[2], re.DOTALL)[1:]:
        cells.append(line.count("<td") + line.count('colspan="2"'))
    assert set(cells) == {titles - 1}, "thead is counted as well"
    assert not {"algorithms", "out. err"} & set(re.findall(r"algorithms|out\. err", html(report)))


def test_it_is_said_why_nothing_was_measured(make_report):
    report = make_report(2)
    rows = tuple(replace(row, total_sqnr_db=None) for row in report.rows)
    page = Page(html(replace(report, rows=rows, settings={"calibration": "stored statistics"})))
    assert "the model was quantized from stored statistics, and no data were given" in page.text
