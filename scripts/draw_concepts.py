"""Draw one small picture for each word of `docs/concepts.md`.

python scripts/draw_concepts.py [docs/figures]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from figure_style import Drawing, draw_pair

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 640, 170

# Measured: one 3x3 convolution from c to c channels at 28x28, one thread, AVX-512, microseconds.
STAIRCASE = ((1, 2.7), (4, 6.8), (8, 12.6), (12, 18.1), (16, 21.6), (17, 41.4), (20, 60.9), (24, 60.1), (32, 60.7))


def flow(picture: Drawing) -> None:
    """Task to report: the stages of a run."""
    steps = ("task", "units", "latency table", "search", "fine-tuning", "proof")
    for number, step in enumerate(steps):
        x = 10 + number * 105
        picture.box(x, 60, 92, 44, fill="soft" if step == "search" else "fill")
        picture.text(x + 46, 87, step, 12)
        if number:
            picture.line([(x - 13, 82), (x, 82)], arrow=True)
    picture.text(10, 35, "what you give", 11, "muted", "start")
    picture.text(115, 35, "what can go, what it costs on your device, which of it goes", 11, "muted", "start")
    picture.text(535, 140, "equal outputs, measured latency", 11, "muted")


def unit(picture: Drawing) -> None:
    """Channels of two convolutions that an addition ties together."""
    for x, name in ((30, "conv a"), (30, "conv b"), (430, "conv c")):
        y = {"conv a": 22, "conv b": 96, "conv c": 59}[name]
        picture.text(x + 60, y - 6, name, 12, "muted")
        for channel in range(6):
            picture.box(
                x + 20 * channel,
                y,
                15,
                40,
                fill="soft" if channel != 3 else "none",
                edge="blue" if channel != 3 else "line",
            )
    picture.text(300, 86, "+", 24)
    picture.line([(152, 42), (285, 70)], arrow=True)
    picture.line([(152, 116), (285, 88)], arrow=True)
    picture.line([(315, 79), (424, 79)], arrow=True)
    picture.text(490, 128, "channel 4 goes in all three, or in none", 12, "muted")


def staircase(picture: Drawing) -> None:
    """Measured latency of a convolution by its width; the circles are the widths worth searching."""
    place = lambda c, us: (60 + 16 * c, 140 - 1.9 * us)  # noqa: E731
    picture.line([(60, 20), (60, 140), (600, 140)])
    picture.line([place(c, us) for c, us in STAIRCASE], "muted")
    for c, us in STAIRCASE:
        useful = c in (1, 4, 8, 12, 16, 32)
        picture.dot(*place(c, us), "blue" if useful else "muted", 5 if useful else 3)
        if c in (4, 8, 16, 24, 32):
            picture.text(place(c, 0)[0], 157, str(c), 11, "muted")
    picture.text(66, 24, "latency", 11, "muted", "start")
    picture.text(600, 157, "width", 11, "muted")
    picture.text(520, 60, "20 and 24 channels", 12)
    picture.text(520, 76, "cost what 32 cost", 12)


def policy(picture: Drawing) -> None:
    """One width for each unit."""
    for number, (name, share) in enumerate(
        (("stream 1", 1.0), ("block 1", 0.5), ("block 2", 0.0), ("stream 2", 0.75), ("block 3", 0.25))
    ):
        y = 14 + 30 * number
        picture.text(110, y + 15, name, 12, "muted", "end")
        picture.box(120, y, 320, 20, fill="none")
        if share:
            picture.box(120, y, 320 * share, 20, fill="soft", edge="blue")
        picture.text(
            455, y + 15, f"{int(64 * share)} of 64" if share else "0: the branch is removed", 12, "ink", "start"
        )


def table(picture: Drawing) -> None:
    """Whole models are timed; costs of operators are fitted to those times."""
    for number, widths in enumerate(((44, 30, 22), (30, 30, 44), (22, 44, 30))):
        y = 24 + 44 * number
        for position, width in enumerate(widths):
            picture.box(20 + 62 * position, y + (44 - width) / 4, 52, width / 1.6, fill="soft", edge="blue")
        picture.text(222, y + 18, ("0.41 ms", "0.38 ms", "0.36 ms")[number], 12, "ink", "start")
    picture.line([(290, 84), (360, 84)], arrow=True)
    picture.text(325, 74, "fit", 12, "muted")
    for number, row in enumerate(
        (("operator", "cost"), ("conv 3 to 32", "18 us"), ("conv 32 to 24", "60 us"), ("everything fixed", "9 us"))
    ):
        y = 24 + 32 * number
        picture.box(375, y, 160, 26, fill="fill" if number else "none")
        picture.box(540, y, 70, 26, fill="fill" if number else "none")
        picture.text(455, y + 18, row[0], 12, "ink" if number else "muted")
        picture.text(575, y + 18, row[1], 12, "ink" if number else "muted")
    picture.text(20, 165, "numbers invented for the picture", 10, "muted", "start")


def front(picture: Drawing) -> None:
    """Score against latency: budgets, models that nothing beats, and others."""
    picture.line([(60, 15), (60, 140), (600, 140)])
    picture.text(66, 20, "score", 11, "muted", "start")
    picture.text(590, 157, "latency", 11, "muted")
    picture.line([(130, 110), (220, 62), (330, 40), (540, 28)], "blue", 1.8)
    for point in ((130, 110), (220, 62), (330, 40)):
        picture.dot(*point, "blue", 5)
    for point in ((190, 116), (260, 92), (310, 100), (400, 70)):
        picture.dot(*point, "line", 3.5)
    picture.box(534, 22, 12, 12, "muted", "muted")
    picture.text(556, 33, "dense", 12, "muted", "start")
    for x, words in ((240, "33 %"), (350, "50 %")):
        picture.line([(x, 15), (x, 140)], "amber", 1)
        picture.text(x, 157, words, 11, "amber")


def rungs(picture: Drawing) -> None:
    """Fidelities: many policies cheaply, few of them expensively."""
    steps = (
        ("table and sensitivities", "thousands", 560),
        ("proxy: repaired, scored", "dozens", 400),
        ("brief fine-tune", "6 a budget", 260),
        ("longer fine-tune", "2 a budget", 170),
        ("full fine-tune", "1 a budget", 110),
    )
    for number, (name, count, width) in enumerate(steps):
        y = 6 + 32 * number
        picture.box(320 - width / 2, y, width, 26, fill="soft" if number else "fill")
        label = f"{name}: {count}" if number < 3 else ""
        picture.text(320, y + 18, label, 12)
        if not label:
            picture.text(330 + width / 2, y + 18, f"{name}: {count}", 12, "ink", "start")


def recovery(picture: Drawing) -> None:
    """Measured: what is left of `resnet20` at half width, before any fine-tuning."""
    rows = (
        ("dense model", 93.58, "line"),
        ("half the channels, batch norms recalibrated", 22.4, "amber"),
        ("half the channels, least squares", 88.7, "blue"),
    )
    for number, (name, score, color) in enumerate(rows):
        y = 12 + 50 * number
        picture.text(20, y + 12, name, 12, "muted", "start")
        picture.box(20, y + 18, 5.2 * score, 16, fill=color, edge=color)
        picture.text(30 + 5.2 * score, y + 31, f"{score:.1f} %", 12, "ink", "start")


PICTURES: Mapping[str, Callable[[Drawing], None]] = {
    "flow": flow, "unit": unit, "level": staircase, "policy": policy,
    "latency-table": table, "budget": front, "fidelity": rungs, "recovery": recovery,
}  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/figures"
    for name, draw in PICTURES.items():
        draw_pair(folder / name, WIDTH, HEIGHT, draw)


if __name__ == "__main__":
    main()
