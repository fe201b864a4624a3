"""The chain that checkpoints and encoder files carry."""

from __future__ import annotations

import json

import pytest

from matssl.core.lineage import Lineage

SSL = {
    "stage": "ssl",
    "method": "spark",
    "encoder": "resnet18",
    "decoder": "unet",
    "data": "0123456789abcdef0123",
    "steps": 8,
    "labelled_digests": ["a", "b"],
}
FILE = {"weights": "matssl encoder", "sha256": "f" * 64}
TUNED = {"stage": "finetune", "encoder": "resnet18", "steps": 4}


def test_a_chain_is_stored_as_a_list_of_plain_values_and_read_again() -> None:
    chain = Lineage().then(SSL).then(FILE).then(TUNED)
    assert chain.stored() == [SSL, FILE, TUNED]
    assert Lineage.read(json.loads(json.dumps(chain.stored()))) == chain
    assert chain.ancestors.stored() == [SSL, FILE] and chain.last == TUNED
    # Files of others, and those of before there was a chain.
    for stored in (None, "a sentence", [], [1, "x"]):
        assert Lineage.read(stored) == Lineage()
    assert Lineage().last == {} and Lineage().ancestors == Lineage()


def test_the_newest_link_that_tells_a_fact_is_asked() -> None:
    chain = Lineage.read([{**SSL, "encoder": "resnet34"}, FILE, TUNED])
    assert chain.newest("encoder") == "resnet18" and chain.newest("decoder") == "unet"
    assert chain.newest("verdict") is None
    assert chain.labelled_digests == {"a", "b"}
    assert chain.unlabelled_digests == frozenset()
    semi = chain.then({**TUNED, "unlabelled_digests": ["c"]}).then(FILE).then(TUNED)
    assert semi.unlabelled_digests == {"c"} and semi.labelled_digests == {"a", "b"}


def test_people_read_short_hashes_and_no_lists() -> None:
    first, second = Lineage.read([SSL, FILE]).lines()
    expected = "stage ssl, method spark, encoder resnet18, decoder unet, data 0123456789abcdef"
    assert first == f"{expected}, steps 8"
    assert second == f"weights matssl encoder, sha256 {'f' * 16}"
    assert Lineage.read([SSL, FILE]).text() == f"{first}\n{second}"
    assert Lineage().text() == "unknown"


def test_weights_of_a_run_that_stopped_say_how_far_it_had_come() -> None:
    assert Lineage.read([SSL]).unfinished() == ""
    stopped = Lineage.read([{**SSL, "planned": 200}])
    assert stopped.unfinished() == "encoder of a run that stopped at step 8 of 200"
    # Whoever fine-tuned from it was told, and a model is another thing.
    assert stopped.then(FILE).then(TUNED).unfinished() == ""


@pytest.mark.parametrize(
    ("verdicts", "doubted"),
    [((), ""), (("healthy",), ""), (("too early",), ""), (("blank",), "'blank'")]
    + [(("collapsed", "healthy"), ""), (("healthy", "collapsed"), "'collapsed'")],
)
def test_the_state_the_last_pretraining_ended_in_speaks_for_or_against(
    verdicts: tuple[str, ...], doubted: str
) -> None:
    chain = Lineage.read([{**SSL, "verdict": verdict} for verdict in verdicts])
    said = chain.then(FILE).then(TUNED).doubt()
    assert doubted in said and bool(said) == bool(doubted)
