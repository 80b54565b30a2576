"""A badge of two words, as SVG."""

from xml.sax.saxutils import escape

__all__ = ["badge"]

_WIDTH = 7
"""Width of a letter of the font, in pixels, rounded up."""
_GOOD, _BAD, _LABEL = "#2e7d32", "#c62828", "#455a64"


def badge(label: str, text: str, *, is_good: bool) -> str:
    """A badge: a label and a text, on green or red."""
    left, right = (_WIDTH * len(part) + 12 for part in (label, text))
    color = _GOOD if is_good else _BAD
    shown = f"{escape(label)}: {escape(text)}"
    font = 'font-family="Verdana, sans-serif" font-size="11" fill="#fff" text-anchor="middle"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" aria-label="{shown}">\n'
        f"<title>{shown}</title>\n"
        f'<rect width="{left}" height="20" fill="{_LABEL}"/>\n'
        f'<rect x="{left}" width="{right}" height="20" fill="{color}"/>\n'
        f"<g {font}>\n"
        f'<text x="{left / 2:g}" y="14">{escape(label)}</text>\n'
        f'<text x="{left + right / 2:g}" y="14">{escape(text)}</text>\n'
        "</g>\n</svg>\n"
    )
