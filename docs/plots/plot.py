#!/usr/bin/env python3
"""Draws the plots of docs/performance.md from what was measured: `docs/plots/plot.py`, or with the folder to write to.

measured.json lists models, each with the microseconds its weights take at the read ceiling and the steps that `fuserun bench` timed. Colours are of a
middle lightness and the background is clear, so that a plot reads on white and on black.
"""

import json
import math
import sys
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent

INK = "#7d8590"
GRID = "#7d859055"
COLOURS = ["#2f81f7", "#db6d28", "#2da44e", "#a371f7", "#d4a72c", "#e5534b"]

WIDTH, HEIGHT = 720, 400


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    source = HERE / "measured.json"
    try:
        measured = json.loads(source.read_text(encoding="utf-8"))
        plots = {"step-by-depth.svg": step_by_depth(measured), "ceiling-by-model.svg": ceiling_by_model(measured)}
    except (ValueError, KeyError) as error:
        sys.exit(f"{source}: {type(error).__name__}: {error}")
    for name, text in plots.items():
        (folder / name).write_text(text, encoding="utf-8")


def step_by_depth(measured):
    """Microseconds per step of batch 1 over the depth, both by powers of two, a line per model, named at the right."""
    lines = [(model["name"], batch_one(model)) for model in measured["models"]]
    points = [point for _, steps in lines for point in steps]
    depths = sorted({depth for depth, _, _ in points})
    lowest = 2 ** math.floor(math.log2(min(us for _, us, _ in points)))
    highest = 2 ** math.ceil(math.log2(max(us for _, us, _ in points)))
    left, right, top, bottom = 70, WIDTH - 130, 50, HEIGHT - 60

    def x(depth):
        return left + (right - left) * ratio(depth, depths[0], depths[-1])

    def y(us):
        return bottom - (bottom - top) * ratio(us, lowest, highest)

    parts = [text(left, 24, "Decode step by depth, batch 1", size=16), text(left, 42, measured["machine"], size=11)]
    us = lowest
    while us <= highest:
        parts += [line(left, y(us), right, y(us), GRID), text(left - 8, y(us) + 4, f"{us}", anchor="end")]
        us *= 2
    parts.append(text(left - 8, top - 12, "us", anchor="end"))
    for depth in depths:
        parts += [line(x(depth), top, x(depth), bottom, GRID), text(x(depth), bottom + 18, f"{depth}", anchor="middle")]
    parts.append(text((left + right) / 2, bottom + 40, "tokens before it", anchor="middle"))
    labels = apart([(y(steps[-1][1]), name) for name, steps in lines], 15)
    for (name, steps), colour in zip(lines, COLOURS):
        path = " ".join(f"{x(depth):.1f},{y(us):.1f}" for depth, us, _ in steps)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(depth):.1f}" cy="{y(us):.1f}" r="3.5" fill="{colour}"/>' for depth, us, _ in steps]
        parts.append(text(right + 10, labels[name] + 4, name, colour=colour))
    return svg(HEIGHT, "Decode step by depth", parts)


def ceiling_by_model(measured):
    """Per cent of the read ceiling that batch 1 reaches at its least depth, a bar a model, the best first."""
    bars = [(model["name"], *batch_one(model)[0], model["floor_us"]) for model in measured["models"]]
    bars.sort(key=lambda bar: (-bar[3], bar[0]))
    left, right, top, pitch = 130, WIDTH - 30, 60, 44
    bottom = top + pitch * len(bars)

    def x(percent):
        return left + (right - left) * percent / 100

    title = "Weights read a second, of what plain reads reach"
    parts = [text(30, 24, title, size=16), text(30, 42, measured["machine"] + ", batch 1", size=11)]
    for percent in range(0, 101, 20):
        parts += [line(x(percent), top, x(percent), bottom, GRID)]
        parts += [text(x(percent), bottom + 18, f"{percent}%", anchor="middle")]
    for row, (name, depth, us, percent, floor) in enumerate(bars):
        at, colour = top + pitch * row + 8, COLOURS[0]
        parts.append(f'<rect x="{left}" y="{at}" width="{x(percent) - left:.1f}" height="{pitch - 16}" fill="{colour}"/>')
        parts.append(text(left - 8, at + 18, name, anchor="end"))
        told = f"{percent:.1f}%: {us:.0f} us at depth {depth}, {floor:.0f} us at the ceiling"
        inside = percent > 60
        parts.append(text(left + 8 if inside else x(percent) + 8, at + 18, told, colour="#ffffff" if inside else INK))
    return svg(bottom + 40, title, parts)


def batch_one(model):
    """Depth, microseconds and per cent of the ceiling of the steps of batch 1, by depth."""
    steps = [(step["depth"], step["us"], step["ceiling_percent"]) for step in model["steps"] if step["batch"] == 1]
    if not steps:
        raise ValueError(f'{model["name"]} has no step of batch 1')
    return sorted(steps)


def ratio(value, lowest, highest):
    """Where `value` is between two others, by its logarithm: 0 to 1."""
    return math.log(value / lowest) / math.log(highest / lowest) if highest > lowest else 0.5


def apart(labels, distance):
    """Places for labels near where they should be, from the top, no two closer than `distance`."""
    placed, last = {}, -math.inf
    for at, name in sorted(labels):
        last = max(at, last + distance)
        placed[name] = last
    return placed


def text(x, y, words, anchor="start", size=12, colour=INK):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{escape(words)}</text>'


def line(x1, y1, x2, y2, colour):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def svg(height, title, parts):
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" role="img">\n<title>{escape(title)}</title>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


if __name__ == "__main__":
    main()
