"""Files are written whole or not at all."""

import json

import pytest

from keras_issl import files

pytestmark = pytest.mark.backend_independent


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "what.json"
    files.write_json(path, {"b": 1, "a": "é"})
    files.write_json(path, {"b": 2, "a": "é"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "é", "b": 2}
    assert path.read_bytes().endswith(b"}\n") and path.read_text().index('"a"') < path.read_text().index('"b"')
    files.write_text(path, "ü")
    assert path.read_bytes() == "ü".encode() and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "kept.txt"
    files.write_text(path, "whole")
    for wrong in ("text, not bytes", None):
        with pytest.raises(TypeError):
            files.write_bytes(path, wrong)
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "\ud800")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):  # a folder stands where the file should
        files.write_text(tmp_path / "folder", "x")
    assert path.read_text() == "whole" and {p.name for p in tmp_path.iterdir()} == {"kept.txt", "folder"}
