"""What every sheet of pictures is drawn with."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageDraw

INK, FAINT, PAPER = "#1d232b", "#5b6673", "#ffffff"
SHEET_HEIGHT = 30_000
"""Pixels; programs that show pictures stop at 32,767, some at less memory."""


def cut_to_width(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    """A text that fits; what is cut off is shown by dots.

    Args:
        draw: measures the text.
        text: one line.
        font: in which it will be drawn.
        width: pixels that there are.
    """
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."


def square(image: Image.Image, side: int) -> Image.Image:
    """The middle square of a picture."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    cut = image.crop((left, top, left + short, top + short))
    return cut.resize((side, side), Image.Resampling.NEAREST if side % short == 0 else Image.Resampling.BICUBIC)
