"""New pictures: taken in, told from masks, and looked at by the doctor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from matssl import preflight
from matssl.core.run_folder import atomic_write_text
from matssl.core.wording import counted
from matssl.data import layouts, readers
from matssl.data.facts import POOL, Facts
from matssl.data.layouts import naming, survey
from matssl.data.readers import Listing
from matssl.loop.context import Context
from matssl.stages.drawing import fitting

# Pictures of the frozen sets, among which copies of new ones are sought.
FROZEN = "frozen"


def take_in(ctx: Context) -> list[Path]:
    """Take in pictures that are new or were changed, and return those that may still change.

    Masks among them are told by their names and by what they hold, and are left out.
    """
    state, places = ctx.state, ctx.places
    found = ctx.arrivals.pictures()
    ready, waiting = ctx.arrivals.whole(found)
    new = []
    for path in ready:
        known = state.pictures.get(places.name(path))
        left = state.left_out.get(places.name(path))
        digest = known and ctx.arrivals.digest(path)
        if left is None and (known is None or known.digest != digest):
            new.append(path)
    ctx.arrivals.save()
    if not new:
        return waiting
    images, left_out = _told_apart(ctx, new, found)
    taken = {picture.key for picture in state.pictures.values()}
    taken |= {label.key for label in state.versions.values()}
    rows = []
    for path in images:
        name = places.name(path)
        key = state.key_of(name) or key_for(name, taken)
        taken.add(key)
        rows.append({"name": name, "key": key, "digest": ctx.arrivals.digest(path)})
    ctx.arrivals.save()
    ctx.write("pictures", pictures=rows, left_out=left_out)
    ctx.say(f"pictures  {counted(len(rows), 'new picture')} (first: {_first(rows)})")
    for name, why in left_out.items():
        ctx.warn(f"{name}: {why}")
    return waiting


def key_for(name: str, taken: set[str]) -> str:
    """Return what the files of a picture are called: its stem; folders and ending where it clashes.

    Args:
        name: path from the folder.
        taken: keys of other pictures; capitals do not tell two apart.
    """
    place = PurePosixPath(name)
    parts = [part for part in place.with_suffix("").parts if part != ".."]
    ways = [place.stem, "_".join(parts), f"{'_'.join(parts)}_{place.suffix.lstrip('.')}"]
    lower = {key.lower() for key in taken}
    for way in ways:
        if fitting(way).lower() not in lower:
            return fitting(way)
    number = 2
    while fitting(f"{ways[-1]}_{number}").lower() in lower:
        number += 1
    return fitting(f"{ways[-1]}_{number}")


def _first(rows: Sequence[dict[str, str]]) -> str:
    return rows[0]["name"] if rows else "none"


def _told_apart(
    ctx: Context, new: Sequence[Path], found: Sequence[Path]
) -> tuple[list[Path], dict[str, str]]:
    """Return the micrographs among new pictures, and the others with what they are."""
    stems: dict[str, list[Path]] = {}
    for path in found:
        stems.setdefault(naming.stem(path), []).append(path)
    # A mask is told beside its picture, which may have been there before.
    beside = {p for path in new for stem in naming.of_mask(path) for p in stems.get(stem, ())}
    wanted = beside.union(new)
    order = [path for path in found if path in wanted]
    seen = survey.survey(
        ctx.places.root, tuple(layouts.DATA_LAYOUTS.values()), found=Listing(tuple(order))
    )
    shown = set(seen.images)
    images = [path for path in new if path in shown]
    why = "no micrograph by its name or by what it holds; masks are put into corrected"
    left = {ctx.places.name(path): why for path in new if path not in shown}
    for path in images if ctx.record.page is None else ():
        if (pages := readers.alike(path)) > 1:
            left[ctx.places.name(path)] = (
                f"has {pages} pages, and the loop corrects pictures; save each page as a file "
                "(ImageJ: File > Save As > Image Sequence)"
            )
    return [path for path in images if ctx.places.name(path) not in left], left


def look(ctx: Context) -> bool:
    """Let the doctor look at pictures that nobody has looked at; return whether there were any."""
    state, root = ctx.state, ctx.places.root
    names = [n for n, p in state.pictures.items() if state.looked.get(n) != p.digest]
    names = [name for name in names if (root / name).is_file()]
    if not names:
        return False
    frozen = {
        ctx.places.store / label.picture: label.name
        for part in state.frozen.values()
        for label in part
    }
    paths = {POOL: [root / name for name in names]}
    if frozen:
        paths[FROZEN] = list(frozen)
    found = preflight.examine(root.name, paths, ctx.record)
    own = {fact.path: fact for fact in found.facts if fact.split == POOL}
    broken = {
        ctx.places.name(path): ctx.places.plain(fact.error)
        for path, fact in own.items()
        if fact.error
    }
    copies = {}
    for first, second, _ in found.duplicates:
        for one, other in ((first, second), (second, first)):
            if one.path in own and other.path in frozen:
                name = ctx.places.name(one.path)
                if name != frozen[other.path]:
                    copies[name] = frozen[other.path]
    noticed = [*map(ctx.places.plain, (*found.judged.warnings, *found.may_be_masks))]
    number = sum(line.step == "doctor" for line in ctx.ledger.lines) + 1
    screen = ctx.places.home / "doctor" / f"{number:04d}.txt"
    screen.parent.mkdir(exist_ok=True)
    atomic_write_text(screen, found.text() + "\n" + found.files(root) + "\n")
    ctx.write(
        "doctor",
        looked={name: state.pictures[name].digest for name in names},
        broken=broken,
        copies=copies,
        pixel_sizes=_sizes(ctx, list(own.values())),
        warnings=noticed,
        screen=screen.relative_to(ctx.places.home).as_posix(),
    )
    ctx.say(f"doctor    {counted(len(names), 'picture')} looked at, {len(broken)} unreadable")
    for name, why in broken.items():
        ctx.warn(f"{name} is left out: {why}")
    for name, like in copies.items():
        ctx.warn(f"{name} shows the place of the frozen image {like} and is never trained on")
    for told in noticed:
        ctx.warn(told)
    return True


def _sizes(ctx: Context, facts: Sequence[Facts]) -> dict[str, float]:
    """Return the pixel sizes that are known, nm."""
    known = {ctx.places.name(f.path): f.pixel_size for f in facts if f.pixel_size is not None}
    return {name: size for name, size in known.items() if size is not None}
