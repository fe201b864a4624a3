"""What the parts of a file name mean: specimen, treatment, place, magnification, date, counter.

2024-05-01_s3_20kV_x500_01   ->   date, specimen s3, setting, setting, number
sample1-region2-03           ->   specimen 1, place 2, number
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum


class Kind(Enum):
    """What a part of a file name stands for."""

    SPECIMEN = "specimen"
    LOT = "production batch"
    TREATMENT = "treatment"
    CODE = "code"
    NUMBER = "number"
    WORD = "word"
    PLACE = "place"
    SETTING = "setting of the microscope"
    DATE = "date or time"
    STATE = "state of the file"


@dataclass(frozen=True)
class Part:
    """A part of a file name.

    Attributes:
        kind: what it stands for.
        text: as written.
        key: by which it is compared: without capitals, accents and leading zeros.
        start: where it begins in the name.
        end: where the next may begin.
    """

    kind: Kind
    text: str
    key: str
    start: int
    end: int

    @property
    def rank(self) -> int:
        """How plainly it names a specimen: 3 by a number sign, 2 by a word, 1 by an s, else 0."""
        if self.kind is not Kind.SPECIMEN:
            return 0
        return 3 if "#" in self.key else 1 if re.fullmatch(r"(s|sp|sn)\d+", self.key) else 2


@dataclass(frozen=True)
class Name:
    """A file name and its parts.

    Attributes:
        stem: without folder and ending.
        parent: the name of the picture it is a tile of; the stem where it is no tile.
        parts: of the parent.
    """

    stem: str
    parent: str
    parts: tuple[Part, ...]

    @property
    def tile(self) -> bool:
        """Whether it was cut out of a larger picture."""
        return self.parent != self.stem

    @property
    def place(self) -> str:
        """The name without settings that follow its last number: SE and BSE show one place."""
        parts = list(self.parts)
        while parts and parts[-1].kind in (Kind.SETTING, Kind.STATE):
            parts.pop()
        return self.parent[: parts[-1].end].lower() if parts else self.parent.lower()

    def text(self, chosen: tuple[Part, ...]) -> str:
        """Return some of the parts as the name writes them."""
        words = ""
        for before, part in zip((None, *chosen), chosen, strict=False):
            if before is not None:
                near = part.start - before.end <= 2 and before in self.parts
                words += self.parent[before.end : part.start] if near else "_"
            words += part.text
        return words


_TILE = re.compile(
    r"(_crop_.*"
    r"|[-_ .]*r(ow)?\d+[-_ ]?c(ol)?\d+"
    r"|[-_ .]+(x\d+[-_ ]?y\d+|y\d+[-_ ]?x\d+)([-_ ]\d+)?"
    r"|[-_ .]+(tile|patch|crop|window|kachel)[-_ ]?\d+([-_ ]\d+)?)$",
    re.IGNORECASE,
)
_MONTHS = "jan|feb|mar|mrz|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez"
_DATE = re.compile(
    r"(?<!\d)(?:"
    r"(?:19|20)\d\d(?P<a>[-_. ]?)(?:0[1-9]|1[0-2])(?P=a)(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0?[1-9]|[12]\d|3[01])(?P<b>[-_.])(?:0?[1-9]|1[0-2])(?P=b)(?:19|20)\d\d"
    rf"|\d{{1,2}}[-_. ]?(?:{_MONTHS})[a-z]*[-_. ]?(?:20)?\d\d"
    r"|1[4-9]\d{8}(?:\d{3})?"
    r"|(?:1\d|2\d|3[0-5])(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d|#)"
    r")(?!\d)"
    # A time of day behind it, down to the second.
    r"(?:[T_\-. ]{1,3}(?:[01]\d|2[0-3])(?P<c>[-_.:h]?)[0-5]\d(?P=c)[0-5]\d(?!\d))?",
    re.IGNORECASE,
)
_SPECIMEN_WORDS = (
    "samples?|specimen|spec|smp|coupon|proben?|prue?fling|muster|schliff|werkstue?ck|kupon|echantillon|ech|muestra|campione"
    "|prov|wafer|ingot|billet|plate|dis[ck]|rod|weld|pellet"
)
_LOT_WORDS = "batch|lot|charge|heat|melt|cast|schmelze"
_PLACE_WORDS = (
    "region|reg|area|fields?|fld|feld|roi|pos|position|site|loc|location|point|view|fov|frame|zone"
    "|quadrant|quad|grid|tile|patch|crop|slice|slide|section|layer|images?|img|im|pic|picture|photo"
    "|foto|bild|scan|shot|aufnahme|micrograph|stelle|bereich|ort|champ|vue|dscn?f?|pict|nr|no|num"
    "|number|stack|series|run|rep|page|file|snap|capture|untitled|series|mag"
)
_PLACES = (
    "top|bottom|middle|mid|center|centre|central|edge|left|right|surface|core|rim|inner|outer"
    "|upper|lower|corner|near|far|oben|unten|mitte|rand|links|rechts|kern|overview|detail|zoom"
    "|closeup|uebersicht|xy|xz|yz|nd|rd|td|north|south|east|west"
)
_DETECTORS = (
    "se|se1|se2|sei|sei2|bse|bsed|bsd|bed|bei|lei|bec|sec|compo|topo|inlens|etd|tld|cbs|abs|vcd|lfd"
    "|gsed|esb|asb|qbsd|aes|ebsd|fsd|eds|edx|edax|wds|cl|ted|stem|haadf|adf|abf|bf|df|dic|pol|xpl"
    "|ppl|sem|tem|om|lom|lm|clsm|afm|ipf|gray|grey|rgb|8bit|16bit|32bit|fesem|hrtem|bright"
)
_STATES = (
    r"raw|orig|original|copy|kopie|edit|edited|final|cropped|processed|stitched|enhanced|clahe"
    r"|denoised|filtered|binned|new|old|small|resized|scaled|v\d{1,2}|rev\d{1,2}"
)
_ALLOYS = "al|aa|aisi|sae|inconel|in|alloy|hastelloy|grade|ti|haynes|rene|dp|trip|twip"
_NUMBER = r"\d+(?:·\d+)?"
_PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(text))
    for kind, text in (
        (Kind.SETTING, rf"(?:mag)?{_NUMBER}k?x|x(?:\d{{2,}}|{_NUMBER}k)|mag{_NUMBER}k?"),
        (Kind.SETTING, rf"{_NUMBER}(?:fach|times|k)|x\d{{2,}}|m\d+x"),
        (Kind.SETTING, rf"{_NUMBER}ke?v|(?:hv|kv|eht){_NUMBER}(?:kv)?|{_NUMBER}(?:pa|na|ua)"),
        (Kind.SETTING, rf"{_NUMBER}(?:nm|um|µm|μm|mm|px|dpi)|wd{_NUMBER}(?:mm)?"),
        (Kind.SETTING, rf"{_NUMBER}(?:deg|°|grad)|(?:0|45|90|135|180|225|270|360)d"),
        (Kind.SETTING, rf"(?:rot|tilt){_NUMBER}|{_DETECTORS}"),
        (Kind.STATE, _STATES),
        (Kind.TREATMENT, rf"{_NUMBER}(?:h|hrs?|hours?|mins?|sec|days?|degc|°c|gradc|mpa|gpa|kn)"),
        (Kind.TREATMENT, rf"{_NUMBER}(?:pct|%|wt|at|ppm|cyc|cycles?|dpa|rpm|kj|kw)"),
        # One letter may as well be the third specimen of ten, unless the number is large.
        (Kind.TREATMENT, r"\d{2,}(?:·\d+)?[csdnjw]|ht\d{3,4}[ck]?"),
        (Kind.SPECIMEN, rf"(?:{_SPECIMEN_WORDS})(?:\d{{1,4}}[a-z]?|[a-z]|[ivx]{{1,4}})"),
        (Kind.SPECIMEN, r"(?:s|sp|sn)\d{1,3}|.*#\d+[a-z]?"),
        (Kind.LOT, rf"(?:{_LOT_WORDS})(?:\d+|[a-z])"),
        (Kind.PLACE, rf"(?:{_PLACE_WORDS})(?:\d+[a-z]?|[a-z])|{_PLACES}|[frzi]\d{{1,3}}"),
        (Kind.NUMBER, r"\d+"),
        # Alloys are written like codes and are materials: AlSi10Mg, Ti6Al4V, 316L.
        (Kind.WORD, r"3\d\d(?:ln?|h|ti)|4\d\d(?:c|f)"),
        (Kind.WORD, rf"(?:{_ALLOYS})\d{{2,4}}[a-z]?"),
    )
)
_ELEMENTS = re.compile(
    r"(?:\d{0,2}(?:Al|Si|Mg|Ti|Fe|Ni|Co|Cr|Cu|Zn|Mn|Mo|Nb|Zr|Ta|W|V|C|N|B|O|Sn|Pb|Ag|Au|Hf|Re|Y)"
    r"\d{0,2}){2,}"
)
_HEAD = {
    Kind.SPECIMEN: re.compile(_SPECIMEN_WORDS),
    Kind.LOT: re.compile(_LOT_WORDS),
    Kind.PLACE: re.compile(_PLACE_WORDS),
    Kind.WORD: re.compile(_ALLOYS),
}
_FILLER = re.compile(r"nr|no|num|number|id")
_BEHIND_HEAD = re.compile(r"\d{1,6}[a-z]?|[a-z]\d{0,4}|[ivx]{1,4}")
# A number and its unit, written apart; the space between becomes one of the width of a digit.
_SPACED_UNIT = re.compile(
    r"(?<=\d)[ ](?=(?:kV|kx|x|X|fach|nm|um|µm|mm|h|hrs?|min|MPa|deg|pct|ppm)(?![A-Za-z0-9]))"
)
_CHUNK = re.compile(r"(?:[^_\-\s,;:+~=()\[\]{}&.@!'$^]|\u2007)+")
# S1F3, 100cyc0017, Steel1Area2: letters behind a number begin another part; 1a and 316L do not.
_INSIDE = re.compile(r"(?<=\d)(?=[A-Za-zµμ]{2,}|[A-Za-z]\d)(?![xX]\d|[lL]?$)")
_UNIT_FIRST = re.compile(
    rf"{_NUMBER}(?:cyc(?:les?)?|ke?v|k?x|nm|um|µm|min|hrs?|h|deg|mpa)(?=\d|x\d)"
)


@functools.lru_cache(maxsize=1 << 17)
def parse(stem: str) -> Name:
    """Return a file name, given without folder and ending, in its parts."""
    parent = _TILE.sub("", stem) or stem
    # Of the same length, so that parts can be found in the name as it is written.
    plain = re.sub(r"(?<=\d)[.,](?=\d+\s?[A-Za-zµμ%])", "·", parent)
    plain = _SPACED_UNIT.sub("\u2007", plain)
    raw: list[Part] = []
    place = 0
    for date in (*_DATE.finditer(plain), None):
        end = date.start() if date else len(plain)
        for chunk in _CHUNK.finditer(plain, place, end):
            raw += _pieces(chunk[0], chunk.start())
        if date is not None:
            raw.append(Part(Kind.DATE, date[0], date[0], date.start(), date.end()))
            place = date.end()
    parts = _joined(raw)
    return Name(stem, parent, tuple(replace(p, text=parent[p.start : p.end]) for p in parts))


def _pieces(chunk: str, start: int) -> list[Part]:
    """Return a run without separators as one part, or as those it is written together of."""
    kind = _kind(chunk)
    if kind is not None:
        return [_part(kind, chunk, start)]
    unit = _UNIT_FIRST.match(chunk.lower())
    cut = unit.end() if unit else 0
    if not cut:
        inside = _INSIDE.search(chunk)
        cut = inside.start() if inside and not _ELEMENTS.fullmatch(chunk) else 0
    if cut:
        return [*_pieces(chunk[:cut], start), *_pieces(chunk[cut:], start + cut)]
    return [_part(_unknown(chunk), chunk, start)]


def _part(kind: Kind, text: str, start: int) -> Part:
    return Part(kind, text, _key(text), start, start + len(text))


def _kind(text: str) -> Kind | None:
    folded = _folded(text)
    if _ELEMENTS.fullmatch(text):
        return Kind.WORD
    return next((kind for kind, pattern in _PATTERNS if pattern.fullmatch(folded)), None)


def _unknown(text: str) -> Kind:
    """Return whether letters and digits tell one of several things, or name a thing."""
    if len(text) == 1 or re.fullmatch(r"[IVX]{1,4}", text):
        return Kind.CODE
    if re.search(r"\d", text) or re.search(r"[a-z][A-Z]$", text):
        return Kind.CODE
    return Kind.WORD


def _joined(parts: list[Part]) -> list[Part]:
    """Return the parts with ``sample`` and ``1``, written apart, as one."""
    result: list[Part] = []
    waiting = list(parts)
    while waiting:
        part = waiting.pop(0)
        kind = next((k for k, head in _HEAD.items() if head.fullmatch(_folded(part.text))), None)
        if part.kind is Kind.WORD and kind is not None:
            behind = 1 if waiting and _FILLER.fullmatch(_folded(waiting[0].text)) else 0
            value = waiting[behind] if len(waiting) > behind else None
            own = kind is Kind.PLACE and _names_itself(waiting[behind:])
            if value is not None and not own and _BEHIND_HEAD.fullmatch(_folded(value.text)):
                del waiting[: behind + 1]
                key = _key(part.text) + value.key
                part = Part(kind, part.text, key, part.start, value.end)
            elif kind is Kind.PLACE:
                part = replace(part, kind=kind)
        result.append(part)
    return result


def _names_itself(parts: Sequence[Part]) -> bool:
    """Return whether what follows a word such as image is no number of it.

    image_S1 names the specimen S1 and no place S1; image_B1_S1 and image_P200_v800 name both.
    """
    if not parts or parts[0].rank:
        return bool(parts)
    names = (Kind.CODE, Kind.TREATMENT)
    more = any(p.rank or (p.kind in names and len(p.text) > 1) for p in parts[1:])
    return parts[0].kind is Kind.CODE and more


def _folded(text: str) -> str:
    plain = text.replace("\u2007", "").replace("ß", "ss")
    plain = unicodedata.normalize("NFKD", plain).lower()
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return plain.replace("\u03bc", "µ")


def _key(text: str) -> str:
    return re.sub(r"(?<!\d)0+(?=\d)", "", _folded(text))
