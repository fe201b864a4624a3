"""The demo's estimate of its time; what it runs, the tests of the commands run."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from matssl.tools import demo


def _minutes(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> int:
    """Return the minutes that are told where a pass of the encoder takes one second."""
    ticks, threads = itertools.count(), torch.get_num_threads()
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)))
    monkeypatch.setattr(demo, "time", clock)
    monkeypatch.setattr(demo, "VIEW", 32)
    monkeypatch.setattr(demo, "PAIRS", 2)
    try:
        told = demo._expected(demo.DemoSettings(**settings))
    finally:
        torch.set_num_threads(threads)
    found = re.fullmatch(r"On \d+ CPU threads? this takes about (\d+) min\.", told)
    assert found, told
    return int(found[1])


def test_the_demo_tells_its_time_from_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    run = demo.FINETUNING_STEP * 60 + demo.RUN
    seconds = demo.PRETRAINING_STEP * 200 + 2 * 2 * run + demo.REST
    told = _minutes(monkeypatch, seeds=2, ssl_steps=200, finetune_steps=60)
    assert told == round(seconds / 60)


def test_no_demo_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "REST", 0.0)
    assert _minutes(monkeypatch, seeds=1, ssl_steps=1, finetune_steps=1) == 1
