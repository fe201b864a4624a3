"""Which pictures, or regions of them, are labelled next: scores and choices as numbers.

A method is a function of this folder and its line in ``METHODS``. It gets what is known of the
candidates (:class:`matssl.selection.candidates.Candidates`) and gives priorities; what is chosen by
them, one by one, says :func:`matssl.selection.choosing.choose`. Nothing here imports torch, and
this file not even numpy: the command's help is read off the table.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Need = Literal["probabilities", "passes", "features"]


class Method(NamedTuple):
    """A way to choose.

    Attributes:
        title: in words.
        where: module and function, ``module:function``.
        needs: what candidates must have: class probabilities, several passes of a model, features.
        spread: whether it takes specimens in turn; chance alone must not.
    """

    title: str
    where: str
    needs: tuple[Need, ...] = ()
    spread: bool = True


_SCORED = "matssl.selection.stratified:by_score"

METHODS: dict[str, Method] = {
    "clasp": Method(
        "each class in turn, by power-noised entropy of where the class may be",
        "matssl.selection.stratified:clasp",
        ("probabilities",),
    ),
    "typiclust": Method(
        "the most typical of the largest clusters that have no label",
        "matssl.selection.coverage:typical",
        ("features",),
    ),
    "coreset": Method(
        "what is farthest from all that is labelled",
        "matssl.selection.coverage:core_set",
        ("features",),
    ),
    "entropy": Method("highest entropy", _SCORED, ("probabilities",)),
    "margin": Method("smallest lead of the first class", _SCORED, ("probabilities",)),
    "least_confidence": Method("least probable first class", _SCORED, ("probabilities",)),
    "bald": Method("passes that contradict each other", _SCORED, ("probabilities", "passes")),
    "boundary_entropy": Method("highest entropy where classes meet", _SCORED, ("probabilities",)),
    "boundary_margin": Method(
        "smallest lead of the first class where classes meet", _SCORED, ("probabilities",)
    ),
    "foreground_random": Method(
        "by chance, two of three among those that show a class of the foreground",
        "matssl.selection.stratified:foreground_random",
        ("probabilities",),
        spread=False,
    ),
    "random": Method("by chance", "matssl.selection.stratified:by_chance", spread=False),
}
# Scores that may be joined by their ranks: entropy+boundary_margin.
SCORES = tuple(name for name, method in METHODS.items() if method.where == _SCORED)
# Every learning curve has them: what no method is worth its trouble without beating.
CHANCE = ("random", "foreground_random")


def problem(word: str) -> str:
    """Return what is wrong with the name of a method, or of scores joined by +, "" for nothing."""
    parts = word.split("+")
    if len(parts) == 1 and word not in METHODS:
        return f"there is no method {word!r}; there are: {', '.join(METHODS)}"
    wrong = [part for part in parts if part not in SCORES]
    if len(parts) > 1 and wrong:
        return f"{word}: {wrong[0]!r} is no score; + joins ranks of: {', '.join(SCORES)}"
    if len(set(parts)) < len(parts):
        return f"{word} names a score twice"
    return ""


def needs(word: str) -> tuple[Need, ...]:
    """Return what a method, or scores joined by +, needs."""
    found: list[Need] = []
    for part in word.split("+"):
        found += [need for need in METHODS[part].needs if need not in found]
    return tuple(found)


def spreads(word: str) -> bool:
    """Return whether a method takes specimens in turn."""
    return METHODS[word].spread if word in METHODS else True
