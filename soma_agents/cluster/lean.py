"""Keeping Ray's processes small: what they would import only because it is installed.

`ray.serve` imports pandas if it is there, every Ray worker pyarrow, and structlog rich: two seconds
and up to 150 MB a process, a dozen times on a machine of two cores. Nothing of Serve or of the
arbiters uses them but the exporter, which writes Parquet, and the gateway once somebody wants vectors of
texts: they let pyarrow in again.
"""

import importlib
import sys

_UNUSED = ("pandas", "pyarrow", "rich")


def forgo() -> None:
    """Make importing these modules fail as if they were not installed, where they are not yet."""
    for name in _UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def permit(name: str) -> None:
    """Let a module in again for whoever imports it."""
    if sys.modules.get(name, ...) is None:
        del sys.modules[name]


def admit(name: str) -> None:
    """Let a module in again, now."""
    permit(name)
    importlib.import_module(name)
