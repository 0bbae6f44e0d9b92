import gzip
import json
import lzma
import os
from pathlib import Path

import numpy as np
import pytest

from zoo.data.readers import MAX_PIECE_BYTES, open_documents, text_of
from zoo.data.sources import File, kind_of
from zoo.errors import UserError


def opened(path: Path, field: str = "text", **keywords):
    return open_documents(File(path, path.name, *kind_of(path)), text_of(field), field, **keywords)


def documents(path: Path, field: str = "text"):
    return list(opened(path, field))


def compress(data: bytes, extension: str) -> bytes:
    if extension == ".zst":
        return pytest.importorskip("zstandard").ZstdCompressor().compress(data)
    return {".gz": gzip.compress, ".xz": lzma.compress}[extension](data)


def test_a_small_text_file_is_one_document_with_every_character_kept(tmp_path):
    text = "  \r\nzwei\tWörter \n\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert documents(tmp_path / "a.txt") == [text]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}')
    assert documents(tmp_path / "a.txt") == documents(tmp_path / "a.jsonl") == ["hello"]


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"line {n}\n" + "\n" * (n % 7 == 0) for n in range(40_000)),
        "\n".join("x" * (n % 300) for n in range(3_000)),
        "ä€🎉" * 30_000,
    ],
    ids=["paragraphs", "lines", "one line of long characters"],
)
def test_a_big_text_file_is_cut_into_pieces_that_join_to_the_file(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    pieces = documents(tmp_path / "a.txt")
    assert "".join(pieces) == text
    assert len(pieces) > 2
    assert max(len(piece.encode()) for piece in pieces) <= MAX_PIECE_BYTES
    if "line 1\n" in text:
        assert all(piece.endswith("\n\n") for piece in pieces[:-1])
    assert list(opened(tmp_path / "a.txt", whole=True)) == [text]


def test_json_lines_give_the_text_field_and_leave_out_empty_texts_and_blank_lines(tmp_path):
    lines = ['{"text": "a\\nb"}', "", '{"text": ""}', '{"text": " "}\r', '{"text": "\\u00e4", "id": 3}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = opened(tmp_path / "a.jsonl")
    assert list(found) == ["a\nb", "ä"]
    assert found.num_skipped == 2


@pytest.mark.parametrize("extension", [".gz", ".xz", ".zst"])
def test_compressed_text_reads_as_the_text(tmp_path, extension):
    (tmp_path / f"a.txt{extension}").write_bytes(compress("Größe\n".encode(), extension))
    lines = b"".join(json.dumps({"body": f"n{n}"}).encode() + b"\n" for n in range(3))
    (tmp_path / f"a.jsonl{extension}").write_bytes(compress(lines, extension) + compress(lines, extension))
    assert documents(tmp_path / f"a.txt{extension}") == ["Größe\n"]
    assert documents(tmp_path / f"a.jsonl{extension}", "body") == ["n0", "n1", "n2"] * 2


@pytest.mark.parametrize("extension", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("keep", [0.3, 0.9, -1])
def test_a_truncated_compressed_file_is_said_to_be_truncated(tmp_path, extension, keep):
    data = compress(os.urandom(5000).hex().encode(), extension)
    (tmp_path / f"a.txt{extension}").write_bytes(data[: int(len(data) * keep) if keep > 0 else keep])
    with pytest.raises(UserError, match=f"a.txt{extension}: .*(truncated|not a valid)"):
        opened(tmp_path / f"a.txt{extension}")


@pytest.mark.parametrize("extension", [".gz", ".xz", ".zst"])
def test_a_file_that_is_not_what_its_compression_extension_says_is_refused(tmp_path, extension):
    (tmp_path / f"a.txt{extension}").write_bytes(b"plain text, not compressed at all")
    with pytest.raises(UserError, match=f"a.txt{extension}: not a valid {extension} file"):
        opened(tmp_path / f"a.txt{extension}")


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"abc\0def", "a.txt: a binary file \\(NUL at byte 3\\)"),
        ("ä".encode("latin-1") + b"bc", "a.txt: not UTF-8 text: .* at byte 0 of the file"),
        (b"x" * 200_000 + b"\xff\n", "a.txt: not UTF-8 text: .* at byte 200000 of the file"),
        ("hello".encode("utf-16"), "a.txt: UTF-16 text"),
    ],
)
def test_a_text_file_that_is_no_utf8_text_is_named_with_the_byte(tmp_path, data, reason):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UserError, match=reason):
        opened(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"text": "a"', "a.jsonl:3: not valid JSON: .* at column"),
        (b"not json", "a.jsonl:3: not valid JSON"),
        (b'["text"]', "a.jsonl:3: expected a JSON object on each line, found a list"),
        (b'{"txt": "a"}', "a.jsonl:3: no field 'text'; did you mean 'txt'"),
        (b'{"text": 5}', "a.jsonl:3: field 'text' must be a string, found a number"),
        (b'{"text": null}', "a.jsonl:3: field 'text' must be a string, found null"),
        (b'{"text": "\xe4"}', "a.jsonl:3: not UTF-8 text: .* at byte 42 of the file"),
        (b'{"text": "\\ud800"}', "a.jsonl:3: a lone surrogate at character 0"),
        (b"[" * 100_000, "a.jsonl:3: not valid JSON: nested too deeply"),
    ],
)
def test_a_wrong_json_line_is_named_with_file_and_line(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "first"}\n' + b" " * 13 + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=reason):
        opened(tmp_path / "a.jsonl")


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("some text")
    found = opened(path)
    path.write_text("some")
    with pytest.raises(UserError, match="has become shorter"):
        found[0]


def test_an_empty_file_has_no_documents(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "b.jsonl").write_bytes(b"\n\n")
    (tmp_path / "c.txt.gz").write_bytes(b"")
    for name in ("a.txt", "b.jsonl", "c.txt.gz"):
        assert documents(tmp_path / name) == []


def write_parquet(path: Path, columns: dict, **keywords):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path, **keywords)


def test_parquet_rows_of_the_text_column_are_documents_without_nulls_and_empty_ones(tmp_path):
    texts = [f"row {n}" if n % 5 else (None if n % 2 else "") for n in range(1000)]
    write_parquet(tmp_path / "a.parquet", {"body": texts, "id": list(range(1000))}, row_group_size=64)
    found = opened(tmp_path / "a.parquet", "body")
    assert list(found) == [text for text in texts if text]
    assert found.num_skipped == 200
    assert np.array_equal(found.sizes, [len(text) for text in texts if text])


@pytest.mark.parametrize(
    "columns, reason",
    [({"txt": ["a"]}, "a.parquet: no column 'text'; did you mean 'txt'"), ({"text": [1]}, "column 'text' holds int64")],
)
def test_a_parquet_file_without_a_string_column_of_that_name_is_refused(tmp_path, columns, reason):
    write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match=reason):
        opened(tmp_path / "a.parquet")


@pytest.mark.parametrize("damage", ["truncated", "not parquet", "empty"])
def test_a_damaged_parquet_file_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "a.parquet"
    write_parquet(path, {"text": ["a", "b"]})
    path.write_bytes({"truncated": path.read_bytes()[:-20], "not parquet": b"hello world", "empty": b""}[damage])
    with pytest.raises(UserError, match="a.parquet: not a readable Parquet file") as error:
        opened(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("package, name", [("pyarrow", "a.parquet"), ("zstandard", "a.txt.zst")])
def test_a_missing_optional_package_is_named_with_the_way_to_install_it(tmp_path, monkeypatch, package, name):
    import sys

    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"{package}: pip install '.\\[data\\]'"):
        opened(tmp_path / name)
