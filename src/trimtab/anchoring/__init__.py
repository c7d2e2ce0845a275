"""Prescriptive anchoring: the direction of a concept chosen before training.

`timeline` holds weights over time, `callback` trains any model with terms, `labels` says which
samples carry a concept, `surgery` cuts dimensions out of weights. `Anchors` and `Monitor`
live in `trimtab.anchoring.callback`, which imports transformers.
"""

from trimtab.anchoring.timeline import Reactive, Row, Sheet, Table, parse_sheet, read_sheet

__all__ = ["Reactive", "Row", "Sheet", "Table", "parse_sheet", "read_sheet"]
