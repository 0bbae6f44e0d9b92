from pathlib import Path

import pytest

from zoo.data.sources import find_files, kind_of, standard_library
from zoo.errors import UserError


def names(found):
    return [file.name for file in found[0]]


def write(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("text")


def test_a_folder_is_searched_with_its_subfolders_in_sorted_order_without_hidden_and_foreign_files(tmp_path):
    write(tmp_path, "b.txt", "a.jsonl", "sub/c.parquet", "sub/d.txt.gz", ".hidden/e.txt", ".f.txt", "readme.md", "x.gz")
    assert names(find_files(str(tmp_path))) == ["a.jsonl", "b.txt", "sub/c.parquet", "sub/d.txt.gz"]
    assert find_files(str(tmp_path))[1] == 2


def test_a_glob_names_its_files_below_its_fixed_part_so_that_moving_the_folder_keeps_the_names(tmp_path):
    write(tmp_path, "one/a.txt", "two/a.txt", "two/b.md")
    assert names(find_files(str(tmp_path / "*" / "*"))) == ["one/a.txt", "two/a.txt"]
    assert names(find_files(str(tmp_path / "**" / "*.txt"))) == ["one/a.txt", "two/a.txt"]
    assert names(find_files(str(tmp_path / "o*"))) == ["one/a.txt"]


def test_a_file_whose_name_holds_glob_characters_is_found_literally(tmp_path):
    write(tmp_path, "a[1].txt")
    assert names(find_files(str(tmp_path / "a[1].txt"))) == ["a[1].txt"]


def test_a_loop_of_links_is_walked_once(tmp_path):
    write(tmp_path, "sub/a.txt")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    assert names(find_files(str(tmp_path))) == ["sub/a.txt"]


@pytest.mark.parametrize(
    "path, reason",
    [
        ("missing.txt", "no such file or folder"),
        ("nothing-*.txt", "no file matches this pattern"),
        ("empty", "no .txt, .jsonl .* and .parquet file in this folder"),
        ("foreign", "no .txt, .jsonl .* and .parquet file in this folder"),
        ("foreign/*", "file matches this pattern"),
        ("foreign/a.pdf", "unsupported extension; supported are .txt"),
        ("foreign/a.json", "name it .jsonl"),
    ],
)
def test_paths_that_give_nothing_to_read_are_named(tmp_path, path, reason):
    (tmp_path / "empty").mkdir()
    write(tmp_path, "foreign/a.pdf", "foreign/a.json")
    with pytest.raises(UserError, match=reason) as error:
        find_files(str(tmp_path / path))
    assert path in str(error.value)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("a.txt", (".txt", "")),
        ("a.b.TXT", (".txt", "")),
        ("a.jsonl.zst", (".jsonl", ".zst")),
        ("a.txt.xz", (".txt", ".xz")),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("txt", None),
    ],
)
def test_the_kind_of_a_file_follows_from_its_extensions(name, kind):
    assert kind_of(Path(name)) == kind


def test_the_standard_library_is_its_source_text_without_tests_packages_and_tables():
    files = {file.name for file in standard_library()}
    assert {"argparse.py", "json/decoder.py"} <= files
    assert not any(part in name.split("/") for name in files for part in ("test", "site-packages", "encodings"))
    assert [file.path for file in standard_library()] == sorted(file.path for file in standard_library())
