"""Line plots as SVG, written by hand: a grid of panels with logarithmic or linear axes."""

import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 460, 310
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 62, 48
# Distinguishable to colour-blind eyes too (Okabe and Ito, "Color Universal Design", 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


class Panel:
    """One plot. A series is (name, [(x, y), …], dashed); values are above 0 where an axis is logarithmic."""

    def __init__(self, title, x_label, y_label, log_y=False):
        self.title, self.x_label, self.y_label = title, x_label, y_label
        self.log_y = log_y
        self.series = []

    def add(self, name, points, dashed=False):
        self.series.append((name, points, dashed))

    def render(self):
        """The panel's elements, with its corner at (0, 0)."""
        x_values = sorted({x for _, points, _ in self.series for x, _ in points})
        y_values = [y for _, points, _ in self.series for _, y in points]
        x_axis = Axis(x_values, LEFT, WIDTH - RIGHT, True)
        y_axis = Axis((log_ticks if self.log_y else linear_ticks)(y_values), HEIGHT - BOTTOM, TOP, self.log_y)
        parts = [text(WIDTH / 2, 18, self.title, "middle", "bold"), *self.axes(x_axis, y_axis)]
        x, y = LEFT, TOP - 26
        for index, (name, points, dashed) in enumerate(self.series):
            parts += draw_series(index, points, dashed, x_axis, y_axis)
            # A letter is about six pixels wide.
            width = 42 + 6 * len(name)
            if x + width > WIDTH - RIGHT:
                x, y = LEFT, y + 15
            parts += draw_key(index, name, dashed, x, y)
            x += width
        return parts

    def axes(self, x_axis, y_axis):
        bottom = HEIGHT - BOTTOM
        for value in x_axis.ticks:
            x = x_axis.place(value)
            yield line(x, TOP, x, bottom, "#e0e0e0")
            yield text(x, bottom + 15, number(value), "middle")
        for value in y_axis.ticks:
            y = y_axis.place(value)
            yield line(LEFT, y, WIDTH - RIGHT, y, "#e0e0e0")
            yield text(LEFT - 6, y + 4, number(value), "end")
        yield line(LEFT, bottom, WIDTH - RIGHT, bottom, "#404040")
        yield line(LEFT, TOP, LEFT, bottom, "#404040")
        yield text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, self.x_label, "middle")
        middle = (TOP + bottom) / 2
        yield f'<g transform="rotate(-90 14 {middle:.0f})">{text(14, middle, self.y_label, "middle")}</g>'


class Axis:
    """Places values between two ends, in pixels, from the first tick to the last; `log`: by their logarithms."""

    def __init__(self, ticks, begin, end, log):
        self.ticks, self.begin, self.end = ticks, begin, end
        self.scale = math.log10 if log else float
        self.low, self.high = self.scale(ticks[0]), self.scale(ticks[-1])

    def place(self, value):
        return self.begin + (self.scale(value) - self.low) / ((self.high - self.low) or 1) * (self.end - self.begin)


def log_ticks(values):
    """Powers of ten around the values; between them 2 and 5 too if there are few."""
    low, high = min(values), max(values)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 3 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    inner = [tick for tick in ticks if low * 0.99 <= tick <= high * 1.01]
    below = [tick for tick in ticks if tick < low * 0.99][-1:]
    above = [tick for tick in ticks if tick > high * 1.01][:1]
    return [*below, *inner, *above]


def linear_ticks(values):
    """About five round numbers from 0 to beyond the values."""
    high = max(values) or 1
    rough = high / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [step * index for index in range(math.ceil(high / step) + 1)]


def draw_series(index, points, dashed, x_axis, y_axis):
    colour = COLOURS[index % len(COLOURS)]
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in sorted(points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash(dashed)}/>'
    if not dashed:
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places)


def draw_key(index, name, dashed, x, y):
    colour = COLOURS[index % len(COLOURS)]
    yield f'<line x1="{x}" y1="{y}" x2="{x + 22}" y2="{y}" stroke="{colour}" stroke-width="2"{dash(dashed)}/>'
    yield text(x + 27, y + 4, name)


def dash(dashed):
    return ' stroke-dasharray="6 4"' if dashed else ""


def line(x1, y1, x2, y2, colour):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def text(x, y, content, anchor="start", weight="normal"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(content)}</text>'


def number(value):
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write(path, panels, columns=2):
    """Writes panels side by side, `columns` in a row."""
    rows = math.ceil(len(panels) / columns)
    columns = min(columns, len(panels))
    size = f'width="{columns * WIDTH}" height="{rows * HEIGHT}" viewBox="0 0 {columns * WIDTH} {rows * HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        parts.append(f'<g transform="translate({column * WIDTH} {row * HEIGHT})">')
        parts += panel.render()
        parts.append("</g>")
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
