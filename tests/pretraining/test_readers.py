import csv
import json

import numpy as np
import pyarrow as pa
import pytest
from backports import zstd
from pyarrow import parquet

from arbiters.errors import InvalidError, NotFoundError
from soma_agents.pretraining.readers import Turn, files_of, read

TEXTS = ["Ein Fuchs.", "две строки\nи ещё", "狐 \U0001f98a", "last"]


def written(folder, kind):
    """The same four documents in each form."""
    path = folder / f"corpus{kind}"
    records = [{"text": text} for text in TEXTS]
    if kind == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif kind == ".jsonl.zst":
        lines = "".join(json.dumps(record) + "\n\n" for record in records)
        path.write_bytes(zstd.compress(lines.encode()))
    elif kind == ".json":
        path.write_text(json.dumps(TEXTS))
    elif kind == ".csv":
        with path.open("w", newline="") as file:
            rows = csv.DictWriter(file, ["id", "text"])
            rows.writeheader()
            rows.writerows({"id": n, "text": text} for n, text in enumerate(TEXTS))
    elif kind.startswith(".parquet"):
        parquet.write_table(pa.table({"n": [1, 2, 3, 4], "text": TEXTS}), folder / "plain")
        content = (folder / "plain").read_bytes()
        (folder / "plain").unlink()
        path.write_bytes(zstd.compress(content) if kind.endswith(".zst") else content)
    return path


KINDS = [".jsonl", ".jsonl.zst", ".json", ".csv", ".parquet", ".parquet.zst"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_gives_the_same_documents(tmp_path, kind):
    path = written(tmp_path, kind)

    assert [found.document for found in read(files_of(path))] == TEXTS


def test_reading_goes_on_behind_any_place(tmp_path):
    for number, kind in enumerate(KINDS[:3]):
        written(tmp_path, kind).rename(tmp_path / f"{number}{kind}")
    files = files_of(tmp_path)
    whole = list(read(files))

    for done, stopped in enumerate(whole, 1):
        assert [x.document for x in read(files, stopped.behind)] == [
            x.document for x in whole[done:]
        ]


def test_text_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path):
    text = "".join(f"paragraph {n} " + "word " * (n % 90) + "\n\n" for n in range(900))
    (tmp_path / "a.txt").write_text(text)

    pieces = [found.document for found in read(files_of(tmp_path / "a.txt"))]

    assert "".join(pieces) == text
    assert len(pieces) > 5
    assert all(piece.endswith("\n\n") for piece in pieces)


def test_conversations_are_read_turn_by_turn(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": turns}))
    parquet.write_table(pa.table({"messages": [turns]}), tmp_path / "b.parquet")

    found = [one.document for one in read(files_of(tmp_path))]

    assert found == [(Turn("user", "hi"), Turn("assistant", "hello"))] * 2


def test_packed_tokens_are_read_as_numbers(tmp_path):
    np.array([5, 6, 60_000], "<u2").tofile(tmp_path / "a.bin")

    (found,) = read(files_of(tmp_path))

    assert found.document.tolist() == [5, 6, 60_000]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"good\n\xff\xfe", "no UTF-8 text: byte 0xff"),
        ("a.txt", b"\x7fELF\x00\x01", "NUL bytes"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', "cannot be read"),
        ("a.jsonl", b'{"body": "a"}\n', r"line 1 has \['body'\], not 'text' or 'messages'"),
        ("a.jsonl", b"7\n", "line 1 is '7'"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}\n', "line 1 has the message .*'user'"),
        ("a.jsonl", b'{"messages": [{"role": "user\\nx", "content": "a"}]}\n', "a role of system"),
        ("a.json", b"[1", "cannot be read"),
        ("a.csv", b"id,body\n1,x\n", "row 1 has"),
        ("a.parquet", b"PAR1junk", "cannot be read"),
        ("a.bin", b"abc", "odd number of bytes"),
        ("a.txt.zst", b"no zstd at all", "is damaged"),
    ],
)
def test_what_is_not_of_its_kind_is_refused_by_name(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(InvalidError, match=said) as caught:
        list(read(files_of(tmp_path)))

    assert name in str(caught.value)


def test_a_cut_archive_is_refused(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    whole = zstd.compress(
        b'{"text": "a"}\n' * 9000 + np.random.default_rng(1).bytes(9000).hex().encode()
    )
    path.write_bytes(whole[: len(whole) // 2])

    with pytest.raises(InvalidError, match=r"a\.jsonl\.zst"):
        list(read(files_of(tmp_path)))


def test_what_is_not_there_or_unknown_is_said(tmp_path):
    (tmp_path / "a.exe").write_bytes(b"MZ")

    with pytest.raises(NotFoundError, match="does not exist"):
        files_of(tmp_path / "none")
    with pytest.raises(InvalidError, match=r"unknown kind '\.exe'"):
        files_of(tmp_path / "a.exe")
    with pytest.raises(InvalidError, match=r"has no \.txt"):
        files_of(tmp_path)
