# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of pages share; conftest.py has `show`, which opens one."""

# What a report has to say to somebody, as WCAG AA wants it.
CONTRAST = 4.5
LUMINANCE = """colour => { const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; }"""
TEXTS = """() => { const paper = getComputedStyle(document.body).backgroundColor; return [paper,
    ...[...document.querySelectorAll('h1, h2, p, dt, dd, code, .where, .text, th, td, b, li, figcaption, svg text')]
    .map(e => e.closest('svg') ? getComputedStyle(e).fill : getComputedStyle(e).color)]; }"""


def contrasts(page):
    """The contrast of every text with the paper."""
    luminance = page.evaluate(f"colours => colours.map({LUMINANCE})", page.evaluate(TEXTS))
    paper, texts = luminance[0], luminance[1:]
    return [(max(paper, text) + 0.05) / (min(paper, text) + 0.05) for text in texts]
