"""A stream resumes exactly, is the same on any number of processes, and yields each token once an epoch.

Line i of the corpus is the number i, which is also its token. So a block's tokens show where it comes from.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_texts import LINES, all_tokens, recipe
from numpy.typing import NDArray

from hfgpt.base.errors import InputError
from hfgpt.data import pieces, sources, streaming, texts
from hfgpt.data.blocks import Prefetched
from hfgpt.data.mix import Pattern
from hfgpt.data.pieces import Part
from hfgpt.data.prepare import prepare
from hfgpt.data.streaming import Lane, MixedLane, StreamBatches, TokenSource, lane_count, merged
from hfgpt.data.texts import TextStream

COUNT = 1600
BLOCK, BATCH, WINDOW = 8, 12, 16


def numbers(part: Part) -> NDArray[np.uint32]:
    """Return the tokens of a part, which are its numbers."""
    return np.array([int(word) for text in part.texts for word in re.findall(r"\d+", text)], dtype=np.uint32)


@pytest.fixture(params=["one file", "files", "jsonl", "gz", "parquet", "rows"])
def stream_of(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes new batches of the numbers in one of several formats.

    "rows" reads a local Parquet folder through the IterableDataset that a Hub dataset would use.
    """
    monkeypatch.setattr(pieces, "PART", 300)
    monkeypatch.setattr(texts, "RUN", 2)
    lines, folder, form = [f"{i:06d}\n" for i in range(COUNT)], tmp_path / "d", request.param
    folder.mkdir()
    if form == "one file":
        (folder / "d.txt").write_text("".join(lines))
    elif form == "files":
        for i in range(0, COUNT, 100):
            (folder / f"{i:04d}.txt").write_text("".join(lines[i : i + 100]))
    elif form == "jsonl":
        (folder / "d.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    elif form == "gz":
        for i in range(0, COUNT, 100):
            (folder / f"{i:04d}.txt.gz").write_bytes(gzip.compress("".join(lines[i : i + 100]).encode()))
    else:
        for i in range(0, COUNT, 100):
            pq.write_table(pa.table({"text": lines[i : i + 100]}), folder / f"{i:04d}.parquet", row_group_size=20)
    found = sources.find(recipe(folder), tmp_path)

    def make(seed: int = 1, held: int = 0, lanes: int = 1) -> tuple[list[int], StreamBatches]:
        def source(lane: int, lanes: int, first: Any = None) -> TokenSource:
            rows, own = None, found.train
            if form == "rows":
                rows, own = datasets.load_dataset("parquet", data_dir=str(folder), split="train", streaming=True), []
            return TokenSource(TextStream(own, rows, "text", (seed,), lane, lanes), numbers, first)

        held_out, first = source(0, lanes if form == "rows" else 1).head(held) if held else (None, None)
        readers = ThreadPoolExecutor(2)

        def make_lane(lane: int) -> Lane:
            begin = first if form != "rows" or lane == 0 else None
            return Lane(source(lane, lanes, begin), BLOCK, WINDOW, (seed, lane), readers)

        return all_tokens(held_out) if held_out else [], StreamBatches(make_lane, lanes, BATCH)

    return make


def step_of(batches: Any, number: int) -> list[list[int]]:
    """Return the global batch of a step, as a single process gets it."""
    (batch,) = batches.micro_batches(number, 0, 1, BATCH)
    return batch.tolist()


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_stream_resumes_exactly_at_every_batch(stream_of: Any, lanes: int) -> None:
    _, batches = stream_of(lanes=lanes)
    steps = COUNT * 2 // (BLOCK * BATCH) + 8  # into the third epoch
    states, seen = [], []
    for number in range(steps):
        states.append(json.dumps(batches.state_dict()))
        seen.append(step_of(batches, number))
    assert json.loads(states[-1])["lanes"]["0"]["position"]["epoch"] >= 1
    for number in range(0, steps - 1, 3):
        _, fresh = stream_of(lanes=lanes)
        fresh.load_state_dict(json.loads(states[number]))
        assert json.dumps(fresh.state_dict()) == states[number]
        assert [step_of(fresh, number), step_of(fresh, number + 1)] == seen[number : number + 2]


@pytest.mark.parametrize("held", [0, 77])
@pytest.mark.parametrize("lanes", [1, 3])
def test_each_token_comes_once_an_epoch_and_what_is_held_out_never(stream_of: Any, lanes: int, held: int) -> None:
    """The tokens show it: each block is a run of consecutive numbers, or of several if one piece follows another."""
    held_out, batches = stream_of(held=held, lanes=lanes)
    assert held_out == list(range(held))
    rest = COUNT - held
    rows = [row for number in range(3 * rest // (BLOCK * BATCH) + 12) for row in step_of(batches, number)]
    counts = np.bincount([token for row in rows for token in row[:-1]], minlength=COUNT)
    assert not counts[:held].any()
    # A window's blocks are shuffled, and a lane is at most a window and a file ahead of the others.
    assert counts[held:].min() >= 2
    assert counts[held:].max() <= counts[held:].min() + 2
    runs = sum(b == a + 1 for row in rows for a, b in itertools.pairwise(row))
    assert runs > 0.7 * len(rows) * BLOCK, "text is not torn apart within a block"
    assert len({tuple(row) for row in rows[: rest // BLOCK // 2]}) == rest // BLOCK // 2, "no block comes twice"
    assert sum(row[0] < again[0] for row, again in itertools.pairwise(rows)) < 0.7 * len(rows), "shuffled"


def test_seeds_shuffle_a_stream_differently(stream_of: Any) -> None:
    assert step_of(stream_of(1)[1], 0) == step_of(stream_of(1)[1], 0) != step_of(stream_of(2)[1], 0)


@pytest.mark.parametrize(("lanes", "world"), [(1, 2), (3, 3), (4, 2), (3, 2), (4, 6), (12, 4)])
def test_any_number_of_processes_trains_the_same_and_goes_on_as_any_other(
    stream_of: Any, lanes: int, world: int
) -> None:
    whole, ranks = stream_of(lanes=lanes)[1], [stream_of(lanes=lanes)[1] for _ in range(world)]
    for number in range(5):
        shares = [m for rank, batches in enumerate(ranks) for m in batches.micro_batches(number, rank, world, 1)]
        assert np.concatenate(shares).tolist() == step_of(whole, number)
    state = json.loads(json.dumps(merged([batches.state_dict() for batches in ranks])))
    assert state == whole.state_dict()
    _, alone = stream_of(lanes=lanes)
    alone.load_state_dict(state)
    assert step_of(alone, 5) == step_of(whole, 5)


def test_a_process_reads_its_own_lanes_alone(stream_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    _, batches = stream_of(lanes=4)
    make = batches._make_lane
    monkeypatch.setattr(batches, "_make_lane", lambda lane: opened.append(lane) or make(lane))
    next(batches.micro_batches(0, 1, 2, 6))
    assert opened == [2, 3]


def test_a_state_of_one_process_alone_is_refused(stream_of: Any) -> None:
    _, one = stream_of(lanes=4)
    list(one.micro_batches(0, 0, 2, 6))
    _, other = stream_of(lanes=4)
    other.load_state_dict(one.state_dict())
    with pytest.raises(InputError, match="does not say where lane 2"):
        list(other.micro_batches(1, 1, 2, 6))


def test_a_checkpoint_from_before_there_were_lanes(stream_of: Any) -> None:
    _, batches = stream_of()
    seen = [step_of(batches, number) for number in range(3)]
    old = {"step": 2, **batches.state_dict()["lanes"]["0"]}
    _, first = stream_of()
    [step_of(first, number) for number in range(2)]
    old = {"step": 2, **first.state_dict()["lanes"]["0"]}
    _, fresh = stream_of()
    fresh.load_state_dict(old)
    assert step_of(fresh, 2) == seen[2]


def test_lanes_follow_from_the_data_and_the_batch() -> None:
    assert lane_count(480, 10_000) == 60
    assert lane_count(480, 50) == 12
    assert lane_count(12, 4) == lane_count(7, 20) == 1
    assert lane_count(127, 10_000) == 1, "a prime number of sequences"


# ---------------------------------------------------------------------------------------------------------- prefetching


def test_the_next_batch_is_prepared_ahead_with_the_state_of_the_last(stream_of: Any) -> None:
    plain, ahead = stream_of(lanes=3)[1], Prefetched(stream_of(lanes=3)[1])
    for number in range(6):
        assert ahead.state_dict() == plain.state_dict()
        assert step_of(ahead, number) == step_of(plain, number)
    state = json.loads(json.dumps(ahead.state_dict()))
    expected = step_of(ahead, 6)
    ahead.load_state_dict(state)
    assert step_of(ahead, 6) == expected, "back by a step in the same process, as after a step that failed"
    fresh = Prefetched(stream_of(lanes=3)[1])
    fresh.load_state_dict(state)
    assert step_of(fresh, 6) == expected


def test_another_micro_batch_than_the_one_prepared(stream_of: Any) -> None:
    ahead, plain = Prefetched(stream_of()[1]), stream_of()[1]
    step_of(ahead, 0)
    step_of(plain, 0)
    assert np.concatenate(list(ahead.micro_batches(1, 0, 1, 4))).tolist() == step_of(plain, 1)


# ------------------------------------------------------------------------------------ what users of `datasets` reported


def rows_of(folder: Path, documents: list[str], group: int) -> Callable[[], TokenSource]:
    pq.write_table(pa.table({"text": documents}), folder / "0.parquet", row_group_size=group)

    def source() -> TokenSource:
        rows = datasets.load_dataset("parquet", data_dir=str(folder), split="train", streaming=True)
        return TokenSource(TextStream([], rows, "text", (1,)), numbers)

    return source


@pytest.fixture(params=[1, 7, 1000])
def source(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], TokenSource]:
    """Return what opens a stream of 200 rows, stored in groups of several sizes."""
    monkeypatch.setattr(pieces, "PART", 40)
    return rows_of(tmp_path, [f"{i:06d}" for i in range(200)], request.param)


def test_rows_are_neither_skipped_nor_repeated_on_resuming(source: Callable[[], TokenSource]) -> None:
    """datasets #8145: rows are skipped after load_state_dict, up to the end of those that were read together."""
    runs = source().tokens()
    seen = [next(runs) for _ in range(60)]
    for at in range(0, 50, 7):
        again = source().tokens(seen[at][1])
        for expected, _ in seen[at : at + 10]:
            assert next(again)[0].tolist() == expected.tolist()


def test_a_resumed_stream_can_be_resumed_again_and_again(source: Callable[[], TokenSource]) -> None:
    """datasets #8308: the state no longer moves after a resume, so that the second resume starts from the beginning."""
    whole = source().tokens()
    expected = [next(whole)[0].tolist() for _ in range(40)]
    place, seen = None, []
    while len(seen) < 40:
        resumed = source().tokens(place)
        seen += [next(resumed)[0].tolist() for _ in range(5)]
        place = next(resumed)[1]
    assert seen == expected


def test_a_long_document_of_a_stream_is_gone_on_with_in_its_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PART", 40)
    source = rows_of(tmp_path, [" ".join(f"{i + n:06d}" for n in range(100)) for i in range(0, 500, 100)], 2)
    runs = source().tokens()
    seen = [next(runs) for _ in range(40)]
    assert len({json.dumps(place) for _, place in seen}) == 40
    for at in range(35):
        again = source().tokens(seen[at][1])
        assert [next(again)[0].tolist() for _ in range(3)] == [tokens.tolist() for tokens, _ in seen[at : at + 3]]


@pytest.mark.parametrize("lane", [0, 1])
def test_two_lanes_that_read_all_of_one_dataset_keep_their_own_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lane: int
) -> None:
    monkeypatch.setattr(pieces, "PART", 1)  # a part is one document
    pq.write_table(pa.table({"text": [f"{i:06d}" for i in range(200)]}), tmp_path / "0.parquet", row_group_size=7)
    rows = datasets.load_dataset("parquet", data_dir=str(tmp_path), split="train", streaming=True)

    def lanes() -> list[TextStream]:
        return [TextStream([], rows, "text", (1, number)) for number in range(2)]

    def texts_of(parts: Iterator[tuple[Part, Any]], n: int) -> list[tuple[list[str], Any]]:
        return [(part.texts, place) for part, place in itertools.islice(parts, n)]

    opened = [stream.parts(0, None, None) for stream in lanes()]
    seen: list[list[Any]] = [[], []]
    for first, second in [(3, 1), (9, 2), (1, 30)]:  # one lane is ahead, then the other
        for number, n in enumerate((first, second)):
            seen[number] += texts_of(opened[number], n)
    assert [text for text, _place in seen[lane]] == [[f"{i:06d}"] for i in range(len(seen[lane]))]
    places = [each[len(each) // 2][1] for each in seen]
    resumed = [stream.parts(0, None, place) for stream, place in zip(lanes(), places, strict=True)]
    begun = [texts_of(parts, 1) for parts in resumed]  # both lanes load a place before either one goes on
    again = begun[lane] + texts_of(resumed[lane], 5)
    expected = seen[lane][len(seen[lane]) // 2 :][:6]
    assert [text for text, _place in again] == [text for text, _place in expected]


# ------------------------------------------------------------------------------------------------------- from a config


def test_streaming_and_preparing_give_the_same_tokens(corpus_file: Path) -> None:
    """Both use the same tokenizer and hold out the first tokens."""
    made = recipe(corpus_file, streaming=True, eval_iters=2)
    corpus = prepare(made, corpus_file.parent)
    n = 2 * 12 * 16 + 1
    text = "".join(LINES)
    assert corpus.tokenizer.decode(all_tokens(corpus.val)) == text[:n]
    assert corpus.tokenizer.decode(all_tokens(corpus.train)) == text[n : 2 * n]
    (batch,) = corpus.batches.micro_batches(0, 0, 1, 8)
    assert all(corpus.tokenizer.decode(row) in text[n:] for row in batch)


def test_a_prepared_stream_has_lanes_and_resumes_on_another_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SMALLEST_WINDOW", 8)
    monkeypatch.setattr(pieces, "PART", 500)
    pq.write_table(pa.table({"text": LINES}), tmp_path / "d.parquet", row_group_size=10)
    made = recipe(tmp_path / "d.parquet", streaming=True, eval_iters=2, batch_size=12)

    def fresh() -> Any:
        return prepare(made, tmp_path / "cache").batches

    whole, ranks = fresh(), [fresh() for _ in range(2)]
    for number in range(4):
        shares = [m for rank, batches in enumerate(ranks) for m in batches.micro_batches(number, rank, 2, 6)]
        assert np.concatenate(shares).tolist() == step_of(whole, number)
    state = merged([batches.state_dict() for batches in ranks])
    assert len(state["lanes"]) == 12
    alone = fresh()
    alone.load_state_dict(state)
    assert step_of(alone, 4) == step_of(whole, 4)


def test_two_processes_share_the_reading_of_a_parquet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So two are at least 1.8 times as fast as one: counted, since the machine's cores decide the seconds."""
    monkeypatch.setattr(streaming, "SMALLEST_WINDOW", 8)
    monkeypatch.setattr(pieces, "PART", 500)
    pq.write_table(pa.table({"text": LINES}), tmp_path / "d.parquet", row_group_size=10)
    made = recipe(tmp_path / "d.parquet", streaming=True, eval_iters=2, batch_size=12)
    read, rows = texts.read, [0]

    def counted(piece: Any) -> Iterator[Part]:
        for part in read(piece):
            rows[0] += len(part.texts)
            yield part

    monkeypatch.setattr(texts, "read", counted)

    def settled() -> int:
        """Return the rows read so far, once nothing is read ahead any more."""
        before = -1
        while rows[0] != before:
            before = rows[0]
            time.sleep(0.3)
        return before

    def rows_read(rank: int, world: int) -> int:
        batches = prepare(made, tmp_path / "cache").batches
        before = settled()
        for number in range(300):
            list(batches.micro_batches(number, rank, world, 12 // world))
        return settled() - before

    alone = rows_read(0, 1)
    assert alone > 2 * len(LINES), "several epochs"
    assert max(rows_read(rank, 2) for rank in range(2)) < alone / 1.8


def test_a_mixed_lane_takes_each_corpus_in_its_order() -> None:
    class Counter:
        def __init__(self, start: int) -> None:
            self.at = self.start = start

        def take(self, n: int) -> NDArray[np.int64]:
            self.at += n
            return np.repeat(np.arange(self.at - n, self.at)[:, None], 3, axis=1)

        def state_dict(self) -> dict[str, Any]:
            return {"at": self.at}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.at = state["at"]

    def fresh() -> MixedLane:
        lanes: Any = [Counter(0), Counter(100_000)]
        return MixedLane(lanes, Pattern([3, 1], 7))

    lane = fresh()
    rows = np.concatenate([lane.take(50) for _ in range(80)])[:, 0]
    assert rows[rows < 100_000].tolist() == list(range((rows < 100_000).sum()))
    assert abs((rows < 100_000).mean() - 0.75) < 0.02
    again = fresh()
    again.load_state_dict(lane.state_dict())
    assert again.take(20).tolist() == lane.take(20).tolist()
