"""A bar chart as SVG text: no library, a small file, colours that follow the reader's light or dark mode."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

WIDTH = 960
LABELS = 176  # room for the servers' names
GAP = 30  # between panels
BAR = 15
BAR_STEP = 23
ROW_HEAD = 58  # a row's title and its panels' titles
ROW_FOOT = 52  # tick labels and the axis' title
VALUE_ROOM = 46  # for the number behind the longest bar

STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
text { font-size: 12px; fill: #1f2328; }
.back { fill: #ffffff; }
.title { font-size: 15px; font-weight: 600; }
.panel { font-weight: 600; }
.small { font-size: 11px; fill: #59636e; }
.grid { stroke: #d1d9e0; stroke-width: 1; }
.spread { stroke: #1f2328; stroke-width: 1.2; fill: none; }
.floor { fill: #9aa4af; }
.uwsgi { fill: #e3a857; }
.wsgimaster { fill: #3b78d8; }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .back { fill: #0d1117; }
  .small { fill: #9198a1; }
  .grid { stroke: #30363d; }
  .spread { stroke: #f0f6fc; }
  .floor { fill: #6e7681; }
  .uwsgi { fill: #b9802f; }
  .wsgimaster { fill: #4c8df0; }
}
"""


@dataclass(frozen=True)
class Bar:
    name: str
    label: str
    value: float | None  # None: not measured
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One quantity: a panel for each number of workers, all on one scale."""

    title: str
    unit: str
    panels: list[tuple[str, list[Bar]]]

    def height(self) -> int:
        return ROW_HEAD + BAR_STEP * len(self.panels[0][1]) + ROW_FOOT

    def largest(self) -> float:
        measured = [bar.high for _, bars in self.panels for bar in bars if bar.value is not None]
        return max(measured, default=1.0)


def step_for(largest: float) -> float:
    """A round distance between ticks (1, 2 or 5 times a power of ten), four or five of them."""
    rough = largest / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def text(x: float, y: float, content: str, style: str = "", anchor: str = "start") -> str:
    css = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{css}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def draw_axis(x: float, top: float, bottom: float, row: Row, scale: float) -> Iterator[str]:
    step = step_for(row.largest())
    for i in range(math.floor(row.largest() / step) + 1):
        at = x + i * step * scale
        yield line(at, top, at, bottom, "grid")
        yield text(at, bottom + 15, f"{i * step:g}", "small", "middle")
    yield text(x, bottom + 33, row.unit, "small")


def draw_bar(bar: Bar, x: float, y: float, scale: float) -> Iterator[str]:
    if bar.value is None:
        yield text(x + 4, y + 12, "not measured", "small")
        return
    family = bar.name.split("-")[0]
    middle, low, high = y + BAR / 2, x + bar.low * scale, x + bar.high * scale
    yield f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar.value * scale:.1f}" height="{BAR}" class="{family}"/>'
    yield line(low, middle, high, middle, "spread")
    yield line(low, middle - 3, low, middle + 3, "spread")
    yield line(high, middle - 3, high, middle + 3, "spread")
    yield text(max(high, x + bar.value * scale) + 5, y + 12, number(bar.value))


def draw_row(row: Row, top: float) -> Iterator[str]:
    panel_width = (WIDTH - LABELS - GAP * len(row.panels)) / len(row.panels)
    scale = (panel_width - VALUE_ROOM) / row.largest()
    bars_top = top + ROW_HEAD
    bottom = bars_top + BAR_STEP * len(row.panels[0][1])
    yield text(16, top + 20, row.title, "title")
    for i, bar in enumerate(row.panels[0][1]):
        yield text(LABELS - 8, bars_top + i * BAR_STEP + 12, bar.label, anchor="end")
    for p, (title, bars) in enumerate(row.panels):
        x = LABELS + p * (panel_width + GAP)
        yield text(x, top + 46, title, "panel")
        yield from draw_axis(x, bars_top - 4, bottom, row, scale)
        for i, bar in enumerate(bars):
            yield from draw_bar(bar, x, bars_top + i * BAR_STEP, scale)


def draw(rows: list[Row], note: str) -> str:
    height = sum(row.height() for row in rows) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label="{escape(rows[0].title)}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" rx="6" class="back"/>',
    ]
    top = 8.0
    for row in rows:
        parts.extend(draw_row(row, top))
        top += row.height()
    parts.append(text(16, height - 14, note, "small"))
    return "\n".join([*parts, "</svg>"]) + "\n"
