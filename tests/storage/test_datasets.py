import json
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

import pytest

from arbiters.errors import CorruptError, InvalidError
from arbiters.events import ChatMessage
from arbiters.records import Example
from soma_agents.storage.datasets import FileDatasetWriter, read_dataset, verify_dataset
from soma_agents.storage.files import write_manifest


def example(name, text="Bonjour, 你好 \u2028 😀", **fields):
    base = Example(
        id=name,
        kind="liked",
        messages=(
            ChatMessage(role="user", content="Hi"),
            ChatMessage(role="assistant", content=text),
        ),
        group="talk",
        events=(f"event of {name}", "another"),
        user="owner",
        trust="owner",
        at=datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
    )
    return replace(base, **fields)


SPLITS = {
    "train": (example("a"), example("p", kind="preference", rejected="No."), example("b")),
    "validation": (example("v", user="eve", trust="imported"),),
    "heldout": (example("q", kind="preference", rejected="Non."),),
}


@pytest.fixture
def writer(tmp_path):
    return FileDatasetWriter(tmp_path / "datasets")


async def test_what_is_read_is_what_was_written(writer):
    ref = await writer.write(SPLITS, {"round": "r1"})

    dataset = read_dataset(Path(ref.path))

    assert dataset.id == ref.id == Path(ref.path).name
    assert {e for s in SPLITS.values() for e in s} == {
        e for s in dataset.splits.values() for e in s
    }
    assert [e.id for e in dataset.targets("train")] == ["a", "b"]
    assert [(e.id, e.rejected) for e in dataset.preferences("train")] == [("p", "No.")]
    assert [e.id for e in dataset.preferences("heldout")] == ["q"]
    assert dataset.manifest["round"] == "r1"


async def test_counts_tell_targets_from_preferences(writer):
    ref = await writer.write(SPLITS, {})

    assert ref.counts == {"train": 2, "validation": 1, "heldout": 0, "preferences": 2}
    assert verify_dataset(Path(ref.path))["counts"] == ref.counts


async def test_chat_lines_are_what_other_trainers_read(writer):
    ref = await writer.write(SPLITS, {})

    lines = (Path(ref.path) / "train.jsonl").read_bytes().splitlines()
    first = json.loads(lines[0])
    pair = json.loads((Path(ref.path) / "preferences.jsonl").read_bytes().splitlines()[0])

    assert first["messages"][0] == {"role": "user", "content": "Hi"}
    assert first["kind"] == "liked"
    assert pair["prompt"] == [{"role": "user", "content": "Hi"}]
    assert pair["chosen"]["role"] == "assistant"
    assert pair["rejected"] == "No."


async def test_parquet_holds_the_same_rows(writer):
    ref = await writer.write(SPLITS, {})

    table = import_module("pyarrow.parquet").read_table(Path(ref.path) / "train.parquet")

    rows = table.to_pylist()
    assert [row["id"] for row in rows] == ["a", "p", "b"]
    assert rows[0]["messages"][1]["content"] == "Bonjour, 你好 \u2028 😀"
    assert rows[1]["rejected"] == "No."
    assert rows[0]["at"] == datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


async def test_the_manifest_says_of_each_example_where_it_came_from(writer):
    ref = await writer.write(SPLITS, {})

    manifest = verify_dataset(Path(ref.path))

    assert manifest["lineage"]["v"] == {
        "split": "validation",
        "events": ["event of v", "another"],
        "user": "eve",
        "trust": "imported",
    }
    assert set(manifest["lineage"]) == {"a", "b", "p", "v", "q"}
    assert {"train.jsonl", "preferences.jsonl", "heldout.parquet"} <= set(manifest["files"])


async def test_the_same_content_is_the_same_dataset_whatever_the_manifest_says(writer):
    first = await writer.write(SPLITS, {"exported_at": "today"})
    stamp = (Path(first.path) / "manifest.json").stat().st_mtime_ns

    second = await writer.write(SPLITS, {"exported_at": "tomorrow"})

    assert second == first
    assert (Path(first.path) / "manifest.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "change",
    [{"user": "eve"}, {"trust": "external"}, {"events": ()}, {"rejected": "x"}, {"group": "g"}],
)
async def test_other_content_is_another_dataset(writer, change):
    first = await writer.write(SPLITS, {})

    second = await writer.write(SPLITS | {"validation": (example("v", **change),)}, {})

    assert second.id != first.id


async def test_an_empty_dataset_can_be_written_and_read(writer):
    ref = await writer.write({"train": (), "validation": (), "heldout": ()}, {})

    assert read_dataset(Path(ref.path)).targets("train") == ()


async def test_a_damaged_dataset_is_refused_and_made_anew_when_written_again(writer):
    ref = await writer.write(SPLITS, {})
    path = Path(ref.path) / "train.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Bonjour", b"Bonsoir"))

    with pytest.raises(CorruptError, match=r"train\.jsonl is damaged"):
        read_dataset(Path(ref.path))

    assert await writer.write(SPLITS, {}) == ref
    assert len(read_dataset(Path(ref.path)).targets("train")) == 2


async def test_an_interrupted_write_leaves_nothing_under_the_datasets_name(writer, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("soma_agents.storage.datasets.write_parquet", killed)
        with pytest.raises(KeyboardInterrupt):
            writer._write(SPLITS, {})
    assert not [p for p in writer._directory.iterdir() if not p.name.startswith(".")]

    ref = await writer.write(SPLITS, {})

    assert [p.name for p in writer._directory.iterdir()] == [ref.id]


@pytest.mark.parametrize("splits", [{}, {"train": ()}, SPLITS | {"test": ()}])
async def test_splits_must_be_the_known_ones(writer, splits):
    with pytest.raises(InvalidError, match="train, validation, heldout"):
        await writer.write(splits, {})


async def test_a_dataset_of_a_newer_format_is_refused(writer):
    ref = await writer.write(SPLITS, {})
    write_manifest(Path(ref.path), {"format": 2})

    with pytest.raises(CorruptError, match="format 2"):
        read_dataset(Path(ref.path))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(CorruptError, match="nowhere"):
        read_dataset(tmp_path / "nowhere")
