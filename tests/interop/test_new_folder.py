import errno
import shutil

import pytest

from zoo.errors import UserError
from zoo.interop.new_folder import check_destination, new_folder


def names(path):
    return sorted(child.name for child in path.iterdir())


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "file").write_text("content")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "file").read_text() == "content"
    assert names(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_failure_leaves_nothing_behind(tmp_path, error):
    with pytest.raises(error), new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("half")
        raise error
    assert names(tmp_path) == []


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="No space left"), new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


def test_what_does_not_fit_on_the_disk_is_not_begun(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(UserError, match="GB free"), new_folder(tmp_path / "out", num_bytes=free * 2):
        raise AssertionError("must not begin")
    assert names(tmp_path) == []


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
    assert names(tmp_path / "out") == ["file"]


def test_an_earlier_export_is_replaced_only_when_asked(tmp_path):
    old = tmp_path / "out"
    old.mkdir()
    (old / "config.json").write_text("old")
    with pytest.raises(UserError, match="not empty"), new_folder(old):
        pass
    with pytest.raises(ValueError), new_folder(old, overwrite=True) as folder:
        (folder / "new").touch()
        raise ValueError
    assert names(old) == ["config.json"]
    with new_folder(old, overwrite=True) as folder:
        (folder / "new").touch()
    assert names(old) == ["new"]
    assert names(tmp_path) == ["out"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="does not look like an earlier export"):
        check_destination(tmp_path, overwrite=True)


def test_the_checkpoint_itself_is_never_replaced(tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").touch()
    for target in (source, tmp_path):
        with pytest.raises(UserError, match="would replace the checkpoint"):
            check_destination(target, overwrite=True, source=source)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="is a file"):
        check_destination(tmp_path / "out", overwrite=True)
    with pytest.raises(UserError, match="could not be written"), new_folder(tmp_path / "out" / "inside"):
        pass
