from __future__ import annotations

import subprocess
import sys

import pytest

from qi.errors import ConfigError
from qi.ledger import formats


def test_case_of_the_suffix_does_not_matter(report):
    assert formats.find_renderer(".JSON") is formats.RENDERERS.get(".json")


def test_an_unknown_suffix_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"received '\.pdf'.*Known: .*\.html, \.json, \.md"):
        formats.find_renderer(".pdf")
    with pytest.raises(ConfigError, match="received ''"):
        formats.find_renderer("")


def test_plug_ins_are_only_imported_when_a_suffix_needs_them():
    program = (
        "import sys\n"
        "from qi.ledger.formats import find_renderer\n"
        "import qi.ledger\n"
        "find_renderer('.json'), find_renderer('.txt')\n"
        "assert not {'qi.report', 'matplotlib', 'jinja2', 'rich'} & set(sys.modules)\n"
        "find_renderer('.md')\n"
        "assert 'qi.report' in sys.modules\n"
        "assert not {'matplotlib', 'jinja2', 'rich'} & set(sys.modules)\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
