"""A text that says one thing again and again without a break: words, syllables, signs, in any script.

A loop is a stretch that repeats a unit of any length back to back, four times at least. It counts where it is a large
part of the text, where it goes on to the end (there the model was cut off), or where it is long. Laughter, refrains,
rules of dashes, rows of zeros and leaders of dots are loops too, and pass because they are short; those of digits and
signs alone, which tables, drawings and numbers have, must be most of a long text.

Axes: N characters of the text.
"""

import numpy as np
import numpy.typing as npt

MIN_REPEATS = 4
MIN_WEIGHT = 60  # of a loop, in characters; one of a script whose characters are syllables or words counts three
WIDE = 0x2E80  # from this code point on: Chinese, Japanese and Korean, and then emoji
WIDE_WEIGHT = 3
LARGE_FRAC, LONG_WEIGHT = 0.35, 400
SIGNS_FRAC, MIN_SIGNS_WEIGHT = 0.5, 150
END_CHARS = 3  # a closing mark may follow
WINDOW = 8  # characters: places that are alike so far are taken to repeat
MIN_PLACES = 8  # windows that come again, in the shortest loop: five wide characters four times
MAX_CHARS = 1 << 16  # of longer texts the end is looked at

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplication by it loses no bit


def loop_repeats(text: str) -> int:
    """How often the unit of a text's worst loop stands in a row; 0 where no loop counts.

    The width of white space makes no difference.
    """
    blank = len(text) - len(text.strip())
    if blank >= MIN_SIGNS_WEIGHT and blank >= SIGNS_FRAC * len(text):
        return blank
    said = " ".join(text.split())[-MAX_CHARS:]
    if len(said) < 2 * WINDOW:
        return 0
    codes_N = np.frombuffer(said.encode("utf-32-le", "surrogatepass"), np.uint32)
    weights_N = np.where(codes_N >= WIDE, WIDE_WEIGHT, 1)
    found = [
        (end - start) // period
        for start, end, period in _stretches(codes_N.astype(np.uint64))
        if end - start >= MIN_REPEATS * period
        and _counts(said[start : start + period], weights_N[start:end].sum(), weights_N.sum(), len(said) - end)
    ]
    return max(found, default=0)


def _counts(unit: str, weight: int, whole: int, left: int) -> bool:
    """Whether a loop of a unit is one that counts, by its weight, the text's, and the characters that follow it."""
    if not any(character.isalpha() or ord(character) >= WIDE for character in unit):
        return weight >= max(MIN_SIGNS_WEIGHT, SIGNS_FRAC * whole)
    return weight >= MIN_WEIGHT and (weight >= LARGE_FRAC * whole or weight >= LONG_WEIGHT or left <= END_CHARS)


def _stretches(codes_N: npt.NDArray[np.uint64]) -> list[tuple[int, int, int]]:
    """`(start, end, period)` of each longest stretch in which every character is the one `period` before it.

    Of stretches of `WINDOW` characters and a period.
    """
    hashes_N = codes_N  # of each window, by its start
    for n in range(1, WINDOW):
        hashes_N = hashes_N[:-1] * _BASE + codes_N[n:]
    order_N = np.argsort(hashes_N, kind="stable")
    same_N = hashes_N[order_N][1:] == hashes_N[order_N][:-1]
    before_N, places_N = order_N[:-1][same_N], order_N[1:][same_N]  # where a window stands, and stood last
    periods_N = places_N - before_N
    found = []
    for period in np.flatnonzero(np.bincount(periods_N) >= MIN_PLACES).tolist():
        at_N = np.sort(places_N[periods_N == period])
        breaks = np.flatnonzero(np.diff(at_N) != 1)
        starts, ends = at_N[np.append(0, breaks + 1)], at_N[np.append(breaks, len(at_N) - 1)]
        stretches = zip(starts.tolist(), ends.tolist(), strict=True)
        found += [(start - period, end + WINDOW, period) for start, end in stretches]
    return found
