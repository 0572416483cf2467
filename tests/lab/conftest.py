"""What tests of whole runs need in several rooms."""

import pytest

from halfway.lab.report import page


@pytest.fixture
def without_pages(monkeypatch):
    """No page is written: to draw all its figures takes longer than to measure what they show."""
    monkeypatch.setattr(page, "write", lambda *_, **__: None)
