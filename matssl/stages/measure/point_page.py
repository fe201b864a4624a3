"""A page on which the points of a grid are counted by hand: point_count.html (``--grid``)."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2

from matssl import pictures, report
from matssl.core.arrays import Array
from matssl.core.wording import counted
from matssl.measure import intervals
from matssl.measure.field import Field
from matssl.measure.point_count import Grid

# Longest side of a picture on the page in pixels, and fields that it shows.
SIDE, MOST_FIELDS = 1000, 30
QUALITY = 85


@dataclass(frozen=True)
class Counted:
    """A field to be counted.

    Attributes:
        name: of it.
        specimen: which it shows.
        picture: JPEG file.
        points: x, y as shares of the sides, and what each counts for each class.
    """

    name: str
    specimen: str
    picture: Path
    points: list[list[object]]


def field(own: Field, grey: Array, found: Grid, path: Path) -> Counted:
    """Write the picture of a field and return it with its points.

    Args:
        own: the field.
        grey: the micrograph (H, W).
        found: its points.
        path: of the JPEG file.
    """
    height, width = grey.shape
    shown = pictures.stretched(grey)
    factor = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", shown, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes())
    points: list[list[object]] = [
        [round(float(x) / width, 5), round(float(y) / height, 5), on.tolist()]
        for x, y, on in zip(found.x, found.y, found.on.T, strict=True)
    ]
    return Counted(own.name, own.specimen, path, points)


def write(
    path: Path, fields: Sequence[Counted], names: Sequence[str], kept: Sequence[int], rule: str
) -> None:
    """Write the page.

    Args:
        path: HTML file.
        fields: the first ones are shown.
        names: of all classes.
        kept: indices of the classes that may be counted.
        rule: by which is counted, a sentence.
    """
    shown = fields[:MOST_FIELDS]
    data = {
        "names": [names[i] for i in kept],
        "t": [intervals.student_t(n) for n in range(1, len(shown) + 1)],
        "least": intervals.MIN_FIELDS,
        "fields": [
            {
                "name": one.name,
                "specimen": one.specimen,
                "picture": base64.b64encode(one.picture.read_bytes()).decode("ascii"),
                "points": [[x, y, [on[i] for i in kept]] for x, y, on in one.points],  # type: ignore[index]
            }
            for one in shown
        ],
    }
    # A name with a tag in it ends no script.
    text = json.dumps(data).replace("<", "\\u003c")
    more = (
        f" The first {MOST_FIELDS} of {counted(len(fields), 'field')}."
        if len(fields) > MOST_FIELDS
        else ""
    )
    note = (
        "Each point begins as the mask has it: filled on the class, half on its border, empty "
        "elsewhere. A click takes the next of the three. Nothing is stored but by the button."
    )
    body = f"{_STYLE}{_CONTROLS}<div id='fields'></div><script>const D={text};{_SCRIPT}</script>"
    sections = [("", report.note(rule) + report.note(note + more)), ("Count", body)]
    report.write(path, "Point count", "ASTM E562, by hand", sections)


_STYLE = """<style>
#fields figure { display: inline-block; margin: 0 1em 1em 0; }
#fields figure > div { position: relative; }
#fields svg { position: absolute; left: 0; top: 0; width: 100%; height: 100%; }
#fields img { display: block; width: 640px; max-width: 100%; }
#fields circle { stroke: #ffd400; stroke-width: 1.5px; vector-effect: non-scaling-stroke;
  cursor: pointer; pointer-events: all; }
#result { font-variant-numeric: tabular-nums; }
</style>"""
_CONTROLS = """<p><label>class <select id='kind'></select></label>
<button id='clear'>empty all</button> <button id='mask'>as the mask has it</button>
<button id='save'>save as CSV</button></p><div id='result'></div>"""
_SCRIPT = """
const $ = id => document.getElementById(id), FILL = {0: 'none', 0.5: '#ffd40080', 1: '#ffd400'};
let kind = 0, state = [];
D.names.forEach((n, i) => $('kind').add(new Option(n, i)));
$('kind').selectedIndex = kind = D.names.length - 1;
const reset = empty => {
  state = D.fields.map(f => f.points.map(p => empty ? 0 : p[2][kind])); draw(); };
function draw() {
  $('fields').replaceChildren(...D.fields.map((f, i) => {
    const box = document.createElement('figure'), img = new Image(),
      over = document.createElement('div');
    img.src = 'data:image/jpeg;base64,' + f.picture;
    const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    f.points.forEach((p, k) => {
      const c = document.createElementNS(svg.namespaceURI, 'circle');
      c.setAttribute('cx', 100 * p[0] + '%'); c.setAttribute('cy', 100 * p[1] + '%');
      c.setAttribute('r', 5); c.setAttribute('fill', FILL[state[i][k]]);
      c.onclick = () => { state[i][k] = {0: 1, 1: 0.5, 0.5: 0}[state[i][k]];
        c.setAttribute('fill', FILL[state[i][k]]); tell(); };
      svg.append(c); });
    const text = document.createElement('figcaption');
    text.id = 'c' + i; over.append(img, svg); box.append(over, text); return box; }));
  tell(); }
const counts = () => D.fields.map((f, i) => ({name: f.name, specimen: f.specimen,
  on: state[i].reduce((a, b) => a + b, 0), all: state[i].length}));
function tell() {
  const own = counts();
  own.forEach((c, i) => { $('c' + i).textContent = `${c.name}: ${c.on} of ${c.all} points`; });
  const specimens = [...new Set(own.map(c => c.specimen))];
  $('result').replaceChildren(...specimens.map(s => {
    const line = document.createElement('div');
    line.textContent = `${s}: ${told(own.filter(c => c.specimen === s))}`; return line; })); }
function told(own) {
  const v = own.filter(c => c.all).map(c => c.on / c.all), n = v.length;
  if (!n) return 'no point';
  const m = v.reduce((a, b) => a + b, 0) / n;
  const s = Math.sqrt(v.reduce((a, b) => a + (b - m) ** 2, 0) / (n - 1));
  let text = `P_P mean ${(100 * m).toFixed(2)} %, ${n} field${n === 1 ? '' : 's'}`;
  if (n >= D.least) {
    const h = D.t[n - 2] * s / Math.sqrt(n);
    text += `, s ${(100 * s).toFixed(2)} %, 95 % half width ${(100 * h).toFixed(2)} %`;
    if (m > 0) text += `, %RA ${(100 * h / m).toFixed(1)}`;
  } else text += ` (no interval below ${D.least})`;
  return text; }
$('kind').onchange = e => { kind = +e.target.value; reset(false); };
$('clear').onclick = () => reset(true); $('mask').onclick = () => reset(false);
$('save').onclick = () => {
  const quote = t => '"' + t.replace(/"/g, '""') + '"';
  const rows = counts().map(c =>
    [quote(c.name), quote(c.specimen), quote(D.names[kind]), c.on, c.all].join(','));
  const a = document.createElement('a');
  a.href = URL.createObjectURL(new Blob(['image,specimen,class,points on it (P),points (P_T)\\n' +
    rows.join('\\n') + '\\n'], {type: 'text/csv'}));
  a.download = 'point_count_by_hand.csv'; a.click(); };
reset(false);
"""
