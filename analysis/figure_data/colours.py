"""Colours that survive colour-blindness and a grey print."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Okabe and Ito's colour-blind-safe set, in an order whose neighbours also differ in lightness.
BEFORE, AFTER = "#0072B2", "#D55E00"
OWN, MEMORY, COPY = "#4D5B66", "#E69F00", "#CC79A7"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
NEUTRAL = "#7F8A93"  # reads on a light and on a dark page
INSERTED_TEXT = "#A34700"


def _oklch(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    """OKLCh (Ottosson 2020) to sRGB in 0..1, clipped to the gamut."""
    a, b = chroma * np.cos(np.deg2rad(hue)), chroma * np.sin(np.deg2rad(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.array(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ]
    ).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (round(float(c), 4) for c in srgb)
    return red, green, blue


def diverging(position: float) -> tuple[float, float, float]:
    """Colour at -1 (orange-brown, the head hurts) .. 0 (near white) .. 1 (blue, the head helps).

    Equal sizes are equally dark on both sides, so a greyscale print shows the size; the sign is
    then read from the minus signs.
    """
    t = min(abs(position), 1.0)
    return _oklch(0.97 - 0.58 * t, 0.1 * t + 0.3 * t * (1 - t), 258.0 if position > 0 else 48.0)


def _diverging_on_dark(position: float) -> tuple[float, float, float]:
    """The same for a dark page: near its ground at 0, and equal sizes equally light."""
    t = min(abs(position), 1.0)
    return _oklch(0.27 + 0.5 * t, 0.01 + 0.15 * t, 250.0 if position > 0 else 55.0)


def diverging_stops(count: int = 33, *, dark: bool = False) -> list[tuple[float, str]]:
    """The diverging map as (0..1, '#rrggbb') stops, for a light page or a dark one."""
    colour = _diverging_on_dark if dark else diverging
    return [(float(p), hex_colour(colour(2 * p - 1))) for p in np.linspace(0, 1, count)]


def sequential_stops(count: int = 17) -> list[tuple[float, str]]:
    """Near white to dark blue-green, for what has no sign."""
    return [
        (float(t), hex_colour(_oklch(0.97 - 0.6 * t, 0.04 * t + 0.2 * t * (1 - t), 200 + 50 * t)))
        for t in np.linspace(0, 1, count)
    ]


def hex_colour(rgb: Sequence[float]) -> str:
    """'#rrggbb' of red, green and blue in 0..1."""
    return "#" + "".join(f"{round(255 * c):02x}" for c in rgb)


def ink(position: float) -> str:
    """Black or white, whichever reads on a cell of that darkness (0..1)."""
    return "#ffffff" if abs(position) > 0.55 else "#202020"


def ink_on(rgb: Sequence[float]) -> str:
    """Black or white, whichever has more contrast (WCAG 2) to a colour of channels in 0..1."""
    share = np.asarray(rgb, dtype=float)
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    # #202020 has a luminance of 0.0144: both contrasts are alike at sqrt(1.05 * 0.0644) - 0.05.
    return "#202020" if linear @ (0.2126, 0.7152, 0.0722) > 0.21 else "#ffffff"


def mark_ink(position: float) -> str:
    """Colour of the minus sign: a step darker than its cell, so weak cells get faint signs."""
    return "#ffffff" if abs(position) > 0.55 else hex_colour(diverging(-abs(position) - 0.45))


def noise_ink(position: float) -> str:
    """Colour of the cross on a score within the noise: grey, because its sign says nothing."""
    return "#ffffff" if abs(position) > 0.55 else NEUTRAL
