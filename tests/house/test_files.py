"""Files that are whole or not there; digests that do not depend on the order of keys."""

from __future__ import annotations

import errno
import json
import os
import re
from itertools import product

import pytest

from trimtab import provenance
from trimtab.files import aside, staged, write_json, write_lines, write_text


def test_what_is_written_reads_back(tmp_path):
    folder = tmp_path / "new" / "deep"
    assert write_text(folder / "a.txt", "ä\nb\n").read_bytes() == "ä\nb\n".encode()
    assert json.loads(write_json(folder / "a.json", {"x": [1, None, "ü"]}).read_text()) == {
        "x": [1, None, "ü"]
    }
    rows = [{"a": 1}, {"a": "\u2028"}]
    lines = write_lines(folder / "a.jsonl", iter(rows)).read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows
    assert sorted(p.name for p in folder.iterdir()) == ["a.json", "a.jsonl", "a.txt"]


@pytest.mark.parametrize(
    "fault", [OSError(errno.ENOSPC, "No space"), KeyboardInterrupt(), ValueError()]
)
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, fault):
    file = write_text(tmp_path / "x", "old")

    def fail():
        with aside(file) as writing:
            writing.write_text("ne")
            raise fault

    with pytest.raises(type(fault)) as raised:
        fail()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
    if isinstance(fault, OSError):
        assert raised.value.filename == str(file)
        assert raised.value.errno == errno.ENOSPC


def test_a_rename_that_fails_names_the_file(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(source))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "x"))):
        write_json(tmp_path / "x", {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_an_error_of_the_file(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="x"):
        write_text(tmp_path / "x", "text")
    assert (tmp_path / "x").is_dir()


def test_digests_of_json():
    """That of the text with sorted keys; lists keep their order."""
    import hashlib

    text = '{"a": [2, 1], "b": null}'
    assert provenance.digest({"b": None, "a": [2, 1]}) == hashlib.sha256(text.encode()).hexdigest()
    assert provenance.digest({"b": None, "a": [1, 2]}) != provenance.digest(
        {"b": None, "a": [2, 1]}
    )


def test_versions_and_commit():
    import platform

    import torch

    import trimtab

    assert list(provenance.versions()) == ["trimtab", "torch", "transformers"]
    assert provenance.versions("torch", "python") == {
        "trimtab": trimtab.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    assert re.fullmatch(r"[0-9a-f]{12}|[0-9.]+", provenance.commit())


def test_a_link_given_as_a_file_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to("there/file.json")
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert json.loads((tmp_path / "there" / "file.json").read_text()) == {"a": 1}
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith(".")] == []


def test_what_a_killed_run_left_is_cleared_and_what_it_took_away_is_put_back(tmp_path):
    target, left = tmp_path / "out", tmp_path / ".out.making"
    (left / "old").mkdir(parents=True)
    (left / "old" / "kept").write_text("x")
    (left / "half").write_text("y")
    with staged(target) as stage:
        assert stage == left
        assert not list(stage.iterdir())
        assert (target / "kept").read_text() == "x"
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_what_fails_between_old_and_new_is_put_back(tmp_path):
    target = tmp_path / "out"
    target.mkdir()

    def fails(stage):
        target.rename(stage / "old")
        raise RuntimeError

    with pytest.raises(RuntimeError), staged(target) as stage:
        fails(stage)
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_whoever_finds_it(tmp_path):
    """safetensors has an error of its own kind for it."""
    from safetensors import SafetensorError

    def full(said):
        raise SafetensorError(said)

    texts = ("IoError(Os { code: 28, kind: StorageFull })", "I/O error: No space (os error 28)")
    for writing, said in product((aside, staged), texts):
        with (
            pytest.raises(OSError, match="No space left") as told,
            writing(tmp_path / "out"),
        ):
            full(said)
        assert (told.value.errno, told.value.filename) == (28, str(tmp_path / "out"))
    with pytest.raises(SafetensorError, match="header"), aside(tmp_path / "out"):
        raise SafetensorError("header too large")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_cleared_and_what_another_writes_is_not(tmp_path):
    file = tmp_path / "a[1].json"
    left = tmp_path / ".a[1].json.999999.writing"
    left.write_text("half")
    with aside(file) as mine:
        assert not left.exists()
        mine.write_text("whole")
        other = tmp_path / ".a[1].json.1.writing"
        mine.rename(other)  # as if another process had it: its lock goes with it
        with aside(file) as second:
            assert other.exists()
            second.write_text("later")
        other.rename(mine)
    assert file.read_text() == "whole"
    assert [f.name for f in tmp_path.iterdir()] == ["a[1].json"]
