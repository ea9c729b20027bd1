"""Labs are skipped, with the reason, where this machine cannot make one."""

from __future__ import annotations

import pytest

STUDY = """\
name: lab
dataset: digits
network: {name: small, width: 0.25, dropout: 0}
splits: [{kind: random, seed: 0}]
treatments: [base, scratch, selffer, selffer+, transfer, transfer+]
layers: [1, 7]
images_per_class: 50
recipe: {epochs: 25, batch_size: 16, lr: 0.02, evaluations: 3, evaluation_images: 60}
execution: {cohort: 1}
"""
CELLS = 20
"""of a second or two, each a trial of its own; all of them learn"""


def unavailable(reason: str | None) -> None:
    """Skip, with the reason."""
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def hosts() -> None:
    """Hosts can be made here."""
    from tests.cluster.lab import missing

    unavailable(missing())
