"""What must show: a figure and its bar."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Bar:
    """One thing that must show. ``met`` is None where it could not be measured."""

    name: str
    measured: float | None
    bar: float
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the measured value is on the right side of the bar."""
        if self.measured is None:
            return None
        return self.measured >= self.bar if self.at_least else self.measured <= self.bar

    def as_dict(self) -> dict[str, Any]:
        """The bar as JSON."""
        return {**asdict(self), "measured": _rounded(self.measured), "bar": _rounded(self.bar), "met": self.met}


def table(bars: Iterable[dict[str, Any]]) -> Table:
    """Bars (`Bar.as_dict`) as a person reads them."""
    shown = Table("bar", title="What must show")
    for name in ("measured", "bar", "met"):
        shown.add_column(name, justify="right")
    for bar in bars:
        measured = "-" if bar["measured"] is None else f"{bar['measured']:.4g}"
        limit = f"{'>=' if bar['at_least'] else '<='} {bar['bar']:g}"
        met = {True: "yes", False: "NO", None: "not measured"}[bar["met"]]
        shown.add_row(bar["name"], measured, limit, met)
    return shown


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
