"""Files that are there whole or not at all."""

import errno
import os

import pytest

from monai_scaleequiv.data._files import whole_file


def no_links(*_):
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.fixture(params=["links", "no links"])
def file(request, tmp_path, monkeypatch):
    """On file systems with and without hard links."""
    if request.param == "no links":
        monkeypatch.setattr(os, "link", no_links)
    return tmp_path / "a.txt"


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("replace", [True, False])
def test_file_is_there_when_it_is_whole(file, replace):
    with whole_file(file, replace) as unfinished:
        unfinished.write_text("half")
        assert not file.exists()
        unfinished.write_text("whole")
    assert contents(file.parent) == {"a.txt": "whole"}


@pytest.mark.parametrize("replace", [True, False])
def test_an_error_leaves_nothing_behind(file, replace):
    def stop():
        with whole_file(file, replace) as unfinished:
            unfinished.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stop()
    assert contents(file.parent) == {}


def test_file_that_came_in_the_meantime_stays(file):
    def write():
        with whole_file(file, replace=False) as unfinished:
            unfinished.write_text("ours")
            file.write_text("of another")

    with pytest.raises(FileExistsError):
        write()
    assert contents(file.parent) == {"a.txt": "of another"}


def test_file_is_replaced(file):
    file.write_text("earlier")
    with whole_file(file) as unfinished:
        unfinished.write_text("later")
        assert file.read_text() == "earlier"
    assert contents(file.parent) == {"a.txt": "later"}


def test_two_writers_of_one_file_do_not_meet(file):
    with whole_file(file) as first, whole_file(file) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert contents(file.parent) == {"a.txt": "first"}  # the one that ended last, whole
