# SPDX-License-Identifier: GPL-2.0-only
"""A report as one HTML file that needs nothing else: no network, no script, no other file.

    page = Page("soak", "held", "3 turns, no growth", {"seed": "5"})
    page.section("Over time", "What the migrator did.")
    figure, axes = plot(1)
    axes[0].plot(times, rates, color=SERIES[0])
    page.figure(figure, "Pages a second")
    page.table(["turn", "pages"], [["1", "4,711"]])
    page.write("soak.html")

The plots are matplotlib's, as SVG.  Their colours are not colours but names: each is drawn with a
hex value that stands for a CSS variable and is replaced by it, so that the page's light and dark
themes hold for the plots too, and text in them stays text.
"""
import io
import re
from pathlib import Path

import jinja2
import matplotlib
from matplotlib.figure import Figure

from shmkern.interrupts import write_whole

# What is drawn with these values is shown in the theme's colours.
_NAMES = ["ink", "muted", "grid", "bad", "good", *(f"s{number}" for number in range(1, 9))]
_HEX = {name: f"#0f0e{number:02x}" for number, name in enumerate(_NAMES)}
INK, MUTED, GRID, BAD, GOOD = (_HEX[name] for name in _NAMES[:5])
SERIES = [_HEX[name] for name in _NAMES[5:]]
STATES = ("held", "broken", "interrupted", "measured")
# For good: a title or a legend takes its style when it is made, wherever that is.
matplotlib.rcParams.update({
    "font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.linewidth": 0.6, "lines.linewidth": 1.3,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "legend.frameon": False, "legend.fontsize": 8, "svg.fonttype": "none", "svg.hashsalt": "shmkern",
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.color": MUTED,
    "ytick.color": MUTED, "axes.edgecolor": MUTED, "grid.color": GRID, "legend.labelcolor": INK,
    "path.simplify_threshold": 0.5})
_TEMPLATE = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                               trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)


def plot(rows, columns=1, height=1.9, width=9.6, **more):
    """A figure of rows times columns axes, `height` inches a row, and its axes as a flat list."""
    figure = Figure(figsize=(width, height * rows + 0.3), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **more).flat)
    for ax in axes:
        ax.yaxis.set_major_formatter("{x:,g}")
    return figure, axes


def svg(figure, number, title):
    """A figure as an <svg> element with the theme's colours.  Its ids begin with `number`, so that
    they are its own on a page with others."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg"):]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    for name, value in _HEX.items():
        text = text.replace(value, f"var(--{name})")
    text = re.sub(r'\bid="', f'id="f{number}-', text)
    text = re.sub(r"url\(#", f"url(#f{number}-", text)
    text = re.sub(r'href="#', f'href="#f{number}-', text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{jinja2.filters.escape(title)}">{rest}'


class Page:
    """A report, part after part.  `state` is one of STATES; `facts` are what ran, on what."""

    def __init__(self, title, state, sentence, facts):
        assert state in STATES
        self.title, self.state, self.sentence, self.facts = title, state, sentence, facts
        self.parts, self._figures = [], 0

    def section(self, heading, text=""):
        """Begins a section, with a text that says what is to be seen in it."""
        self.parts.append({"kind": "section", "heading": heading, "text": text})

    def table(self, columns, rows, empty="None."):
        """A table of texts.  A row may be (class, cells)."""
        rows = [row if isinstance(row, tuple) else ("", row) for row in rows]
        numeric = [all(re.match(r"[-+]?[\d.]|–?$", row[1][index]) for row in rows) for index in range(len(columns))]
        self.parts.append({"kind": "table", "columns": columns, "rows": rows, "numeric": numeric, "empty": empty})

    def list(self, items):
        """A list of texts."""
        self.parts.append({"kind": "list", "items": items})

    def figure(self, figure, caption):
        """A figure of plot()."""
        self._figures += 1
        self.parts.append({"kind": "figure", "svg": svg(figure, self._figures, caption), "caption": caption})

    def html(self):
        """The whole page."""
        return _TEMPLATE.get_template("report.html.jinja").render(page=self)

    def write(self, path):
        """Writes the page.  Raises OSError."""
        write_whole(path, self.html())
