from __future__ import annotations

from qi.ledger.table import fitting_columns, table

HEADER = ("layer", "type", "bits")
ROWS = [("head", "Dense", "8"), ("backbone/conv", "Conv2D", "16")]


def test_columns_line_up():
    assert table(HEADER, ROWS, left=2).splitlines() == [
        "layer          type    bits",
        "head           Dense      8",
        "backbone/conv  Conv2D    16",
    ]
    assert table(HEADER, []) == "layer  type  bits"


def test_columns_go_in_order_until_the_rest_fits():
    assert fitting_columns(HEADER, ROWS, ["type", "bits"], width=27) == (0, 1, 2)
    assert fitting_columns(HEADER, ROWS, ["type", "bits"], width=26) == (0, 2)
    assert fitting_columns(HEADER, ROWS, ["type", "bits"], width=27, gap=3) == (0, 2)
    assert fitting_columns(HEADER, ROWS, ["type", "bits"], width=1) == (0,)
