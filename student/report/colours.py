"""The colours of reports: of lines (the CSS variables of the light page), and of maps; no library needed."""

import math

SERIES = ("#0072b2", "#c8501a", "#00805c", "#a8447f", "#8a6d00", "#5b4bb5", "#3d7fa6", "#5a6473")
INK, MUTED, GRID, LINE = "#14181f", "#5a6473", "#e3e7ed", "#c6cdd8"


def ramp(share: float) -> tuple[int, int, int]:
    """The colour of a share in [0, 1]: dark blue over teal to light yellow, sRGB.

    Lightness rises linearly in OKLab (Ottosson 2020), so equal steps of the value look equal, also in grey and to the
    colour-blind; hue and chroma only help the eye to find its way back.
    """
    share = min(max(share, 0.0), 1.0)
    lightness = 0.30 + 0.63 * share
    hue = math.radians(280 - 175 * share)
    chroma = 0.085 + 0.05 * share
    return _oklab_to_srgb(lightness, chroma * math.cos(hue), chroma * math.sin(hue))


def _oklab_to_srgb(lightness: float, a: float, b: float) -> tuple[int, int, int]:
    """Matrices of Björn Ottosson, "A perceptual color space for image processing" (2020)."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    red, green, blue = (round(255 * _gamma(min(max(value, 0.0), 1.0))) for value in linear)
    return red, green, blue


def _gamma(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055


def luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance of WCAG 2.2 in [0, 1]."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink_on(colour: tuple[int, int, int]) -> str:
    """Black or white, whichever contrasts more (at least 4.5 : 1 on every colour of the ramp)."""
    bright = luminance(colour)
    return "#000" if (bright + 0.05) / 0.05 >= 1.05 / (bright + 0.05) else "#fff"
