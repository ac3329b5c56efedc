"""What the scripts that draw figures share: one palette for light and for dark pages, and a small SVG writer.

Every figure is a pair of files, `NAME-light.svg` and `NAME-dark.svg`, with a transparent background.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any, cast

THEMES: Mapping[str, Mapping[str, str]] = {
    "light": {
        "ink": "#1f2328",
        "muted": "#59636e",
        "line": "#8c959f",
        "fill": "#eef1f4",
        "blue": "#0969da",
        "amber": "#9a6700",
        "green": "#1a7f37",
        "soft": "#cfe4fb",
    },
    "dark": {
        "ink": "#e6edf3",
        "muted": "#a6b0bb",
        "line": "#7d8590",
        "fill": "#2b3240",
        "blue": "#58a6ff",
        "amber": "#d9a520",
        "green": "#3fb950",
        "soft": "#1f4673",
    },
}
"""Colours by theme and role; `soft` is blue behind text."""


class Drawing:
    """An SVG picture of `width` x `height` pixels in the colours of one theme."""

    def __init__(self, width: int, height: int, theme: str) -> None:
        self.width, self.height, self.colors = width, height, THEMES[theme]
        self._parts: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, fill: str = "fill", edge: str = "line") -> None:
        """A rounded rectangle; colours are roles of the theme or `none`."""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="5" '
            f'fill="{self._color(fill)}" stroke="{self._color(edge)}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: int = 13,
        color: str = "ink",
        anchor: str = "middle",
        weight: int = 400,
    ) -> None:
        """One line of text with its baseline at `y`."""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
            f'fill="{self._color(color)}">{escape(words)}</text>'
        )

    def line(
        self, points: list[tuple[float, float]], color: str = "line", width: float = 1.4, arrow: bool = False
    ) -> None:
        """Straight lines from point to point, with an arrow head at the last one on request."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        head = f' marker-end="url(#{color})"' if arrow else ""
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{self._color(color)}" stroke-width="{width}"{head}/>'
        )

    def dot(self, x: float, y: float, color: str = "blue", radius: float = 4.5) -> None:
        """A filled circle."""
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{self._color(color)}"/>')

    def svg(self) -> str:
        """The picture as an SVG document."""
        heads = "".join(
            f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{value}"/></marker>'
            for name, value in self.colors.items()
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif">'
            f"<defs>{heads}</defs>\n" + "\n".join(self._parts) + "\n</svg>\n"
        )

    def _color(self, name: str) -> str:
        return self.colors.get(name, name)


def draw_pair(out: Path, width: int, height: int, draw: Callable[[Drawing], None]) -> None:
    """Write `out-light.svg` and `out-dark.svg`; `out` is a path without a suffix."""
    for theme in THEMES:
        drawing = Drawing(width, height, theme)
        draw(drawing)
        path = out.with_name(f"{out.name}-{theme}.svg")
        path.write_text(drawing.svg())
        print(path)


def plot_pair(out: Path, plot: Callable[[Mapping[str, str]], Any]) -> None:
    """Write a pair of SVG files from `plot`, which makes a matplotlib figure in the colours of a theme."""
    import matplotlib as mpl

    mpl.use("Agg")
    for theme, colors in THEMES.items():
        style: dict[str, Any] = dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), colors["ink"])
        style |= dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), colors["muted"])
        style |= {"svg.hashsalt": "autoprune", "font.size": 10}
        with mpl.rc_context(cast(Any, style)):
            path = out.with_name(f"{out.name}-{theme}.svg")
            plot(colors).savefig(path, transparent=True, metadata={"Date": None})
            print(path)
