"""The bus against its model in some dozens of histories; `python -m bench.states` makes 1,000."""

import pytest
from hypothesis.stateful import run_state_machine_as_test

from arbiters.kernel import host as kernel
from bench.states.machine import Bus, patiently

HISTORIES = 40


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(kernel, "RETRY_SECONDS", kernel.RETRY_SECONDS)  # the machine has none


def test_the_bus_keeps_its_promises_in_any_history():
    lived = []

    class Counted(Bus):
        def teardown(self):
            super().teardown()
            lived.append(self)

    run_state_machine_as_test(Counted, settings=patiently(HISTORIES, 30))

    assert len(lived) >= HISTORIES
