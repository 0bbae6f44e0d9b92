import numpy as np
import pytest

from zoo.errors import UserError
from zoo.inference.files import output_file, read_array


def test_an_array_is_read_back(tmp_path):
    with output_file(tmp_path / "a.bin") as output:
        output.write_array(np.arange(6).reshape(2, 3))
    assert read_array(tmp_path / "a.bin").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_mapped_array_is_an_ordinary_file_afterwards(tmp_path):
    with output_file(tmp_path / "a.npy") as output:
        output.map_array((2, 3), np.float32)[:] = 7
    array = read_array(tmp_path / "a.npy")
    assert array.tolist() == [[7.0] * 3] * 2
    assert array.dtype == np.float32


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"old")
    with pytest.raises(RuntimeError), output_file(tmp_path / "a.npy") as output:
        output.write_array(np.zeros(3))
        raise RuntimeError
    assert (tmp_path / "a.npy").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["no/such/folder.npy", "."])
def test_a_path_that_cannot_be_written_is_said_before_the_work(tmp_path, name):
    with pytest.raises(UserError, match="cannot be written|is a folder"), output_file(tmp_path / name):
        pytest.fail("the work has begun")


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with (
        pytest.raises(UserError, match=r"a\.npy: cannot be written: No space left"),
        output_file(tmp_path / "a.npy") as out,
    ):
        out.map_array((2, 3), np.float32)
    assert not list(tmp_path.iterdir())


def test_no_output_is_no_file():
    with output_file(None) as output:
        assert output is None


def test_files_that_hold_no_plain_array_are_refused(tmp_path):
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "several.npz", a=np.zeros(2))
    np.save(tmp_path / "cut.npy", np.zeros(1000))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:500])
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ["object.npy", "several.npz", "cut.npy", "text.npy", "empty.npy", "missing.npy", "."]:
        with pytest.raises(UserError, match=str(tmp_path)):
            read_array(tmp_path / name)
