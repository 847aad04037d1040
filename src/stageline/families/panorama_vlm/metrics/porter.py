"""Porter's stemmer, with the departures from the paper that nltk's default mode makes.

M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980: the steps carry the paper's numbers. METEOR's
published values come from nltk, so its irregular forms and changed rules are part of the definition here. Verified
against stored stems of that library.
"""

from __future__ import annotations

from functools import lru_cache

VOWELS = "aeiou"
IRREGULAR = {
    **dict.fromkeys(("sky", "skies"), "sky"),
    **{f"{letter}ying": f"{letter}ie" for letter in "dlt"},
    **{f"{noun}{end}": noun for noun in ("inning", "outing", "canning") for end in ("", "s")},
    **{word: word for word in ("news", "howe", "proceed", "exceed", "succeed")},
}
STEP_2 = {
    "ational": "ate",
    "tional": "tion",
    "enci": "ence",
    "anci": "ance",
    "izer": "ize",
    "bli": "ble",
    "alli": "al",
    "entli": "ent",
    "eli": "e",
    "ousli": "ous",
    "ization": "ize",
    "ation": "ate",
    "ator": "ate",
    "alism": "al",
    "iveness": "ive",
    "fulness": "ful",
    "ousness": "ous",
    "aliti": "al",
    "iviti": "ive",
    "biliti": "ble",
    "fulli": "ful",
    "logi": "log",
}
STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
STEP_4 = (
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate"),
    *("iti", "ous", "ive", "ize"),
)


def _shape(word: str) -> str:
    """`c` or `v` for every letter: y is a vowel behind a consonant."""
    shape = ""
    for letter in word:
        vowel = letter in VOWELS or (letter == "y" and shape[-1:] == "c")
        shape += "v" if vowel else "c"
    return shape


def _measure(stem: str) -> int:
    """The m of [C](VC){m}[V]."""
    return _shape(stem).count("vc")


def _is_short(stem: str) -> bool:
    """The paper's *o: ends consonant, vowel, consonant other than w, x, y. As nltk: or is vowel, consonant."""
    shape = _shape(stem)
    return (shape[-3:] == "cvc" and stem[-1] not in "wxy") or shape == "vc"


def _is_doubled(stem: str) -> bool:
    """The paper's *d: ends in a double consonant."""
    return len(stem) > 1 and stem[-1] == stem[-2] and _shape(stem)[-1] == "c"


def _step_1a(word: str) -> str:
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _step_1b(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    ends = [end for end in ("ed", "ing") if word.endswith(end) and "v" in _shape(word[: -len(end)])]
    if not ends:
        return word
    stem = word[: -len(ends[0])]
    if stem.endswith(("at", "bl", "iz")):
        return stem + "e"
    if _is_doubled(stem):
        return stem if stem[-1] in "lsz" else stem[:-1]
    return stem + "e" if _measure(stem) == 1 and _is_short(stem) else stem


def _step_1c(word: str) -> str:
    """As nltk: y behind a consonant that is not the first letter."""
    return word[:-1] + "i" if word.endswith("y") and len(word) > 2 and _shape(word)[-2] == "c" else word


def _step_2(word: str) -> str:
    while word.endswith("alli") and _measure(word[:-4]) > 0:
        word = word[:-2]
    for suffix, replacement in STEP_2.items():
        if word.endswith(suffix):
            stem = word[: -len(suffix)]
            counted = word[:-3] if suffix == "logi" else stem
            return stem + replacement if _measure(counted) > 0 else word
    return word


def _step_3(word: str) -> str:
    for suffix, replacement in STEP_3.items():
        if word.endswith(suffix):
            stem = word[: -len(suffix)]
            return stem + replacement if _measure(stem) > 0 else word
    return word


def _step_4(word: str) -> str:
    for suffix in STEP_4:
        if word.endswith(suffix):
            stem = word[: -len(suffix)]
            goes = _measure(stem) > 1 and (suffix != "ion" or stem[-1] in "st")
            return stem if goes else word
    return word


def _step_5(word: str) -> str:
    if word.endswith("e"):
        stem = word[:-1]
        measure = _measure(stem)
        if measure > 1 or (measure == 1 and not _is_short(stem)):
            word = stem
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


@lru_cache(maxsize=1 << 16)
def stem_of(word: str) -> str:
    """The stem of a word in lower case; words of one or two letters are their own."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) <= 2:
        return word
    for step in (_step_1a, _step_1b, _step_1c, _step_2, _step_3, _step_4, _step_5):
        word = step(word)
    return word
