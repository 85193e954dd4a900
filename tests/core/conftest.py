"""What the tests of several modules of the core share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qi.core import sweep


@pytest.fixture(scope="module")
def eager_threads() -> Iterator[None]:
    """Threads for arrays that would be too small to be worth one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "SHARE", 1)
        yield
