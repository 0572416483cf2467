"""The lock is written by one command, and what is fitted once is fitted once."""

import json
import shutil
import types

import pytest

from halfway.lab.commands import register
from halfway.lab.config.user import UserError
from halfway.lab.study import registration

LINES = {"T3": {"lines": {}}, "T12": {"lines": {}}}


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """A copy of the lock in the place of the shipped one."""
    copied = tmp_path / registration.NAME
    shutil.copy(registration.path(), copied)
    monkeypatch.setattr(registration, "path", lambda: copied)
    registration.read.cache_clear()
    yield copied
    registration.read.cache_clear()


def _run(monkeypatch, workdir):
    monkeypatch.setattr(register, "WORKDIR", types.SimpleNamespace(value=workdir))
    monkeypatch.setattr(register, "fit", lambda path: LINES)
    register.main()


def test_a_lock_that_is_as_the_rules_are_stays_as_it_is(lock, monkeypatch, capsys):
    before = json.loads(lock.read_text(encoding="utf-8"))
    _run(monkeypatch, None)
    assert json.loads(lock.read_text(encoding="utf-8")) == before
    assert "version" not in capsys.readouterr().out


def test_lines_that_are_in_the_lock_are_not_fitted_again(lock, monkeypatch):
    before = lock.read_bytes()
    with pytest.raises(UserError, match="T3 and T12: they are fitted once"):
        _run(monkeypatch, "run")
    assert lock.read_bytes() == before


def test_lines_are_fitted_where_the_lock_has_none(lock, monkeypatch, capsys):
    plain = json.loads(lock.read_text(encoding="utf-8"))
    lock.write_text(json.dumps(plain | {"fitted": {}}), encoding="utf-8")
    registration.read.cache_clear()
    _run(monkeypatch, "run")
    after = json.loads(lock.read_text(encoding="utf-8"))
    assert after == plain | {"fitted": LINES}
    assert "T3: fitted" in capsys.readouterr().out
