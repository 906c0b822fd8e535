from __future__ import annotations

import csv
import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from pipeline import datasets
from pipeline.datasets import FetchError, Source, convert_grouplens, convert_recbole

RATINGS = b"196\t242\t3\t881250949\n186\t302\t3\t891717742\n"


def flags(*genres: int) -> str:
    return "|".join("1" if index in genres else "0" for index in range(19))


@pytest.fixture
def grouplens(tmp_path: Path) -> Path:
    lines = [
        f"1|Toy Story (1995)|01-Jan-1995||http://x/|{flags(3, 4, 5)}",
        f"267|unknown||||{flags(0)}",
        f"543|Misérables, Les (1995)|01-Jan-1995||http://x/|{flags(8, 12)}",
        f"1201|Marlene Dietrich: Shadow and Light (1996) |02-Apr-1996||http://x/|{flags(7)}",
        f"1412|Land Before Time III (1995) (V)|01-Jan-1995||http://x/|{flags(3, 4)}",
    ]
    path = tmp_path / "ml-100k.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml-100k/u.data", RATINGS)
        archive.writestr("ml-100k/u.item", "\n".join(lines).encode("latin-1") + b"\n")
        archive.writestr("ml-100k/u.user", b"1|24|M|technician|85711\n2|53|F|other|94043\n")
    return path


@pytest.fixture
def recbole(tmp_path: Path) -> Path:
    lines = [
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
        "1\tToy Story\t1995\tAnimation Children's Comedy",
        "267\tunkonwn\tunkonwn\tunknown",
        "543\tMisérables, Les\t1995\tDrama Musical",
        "1201\tMarlene Dietrich: Shadow and Light\t1996\tDocumentary",
        "1412\tLand Before Time III (1995)\tV\tAnimation Children's",
    ]
    users = [
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token",
        "1\t24\tM\ttechnician\t85711",
        "2\t53\tF\tother\t94043",
    ]
    path = tmp_path / "recbole.whl"
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{folder}.inter", b"user_id:token\trest\n" + RATINGS)
        wheel.writestr(f"{folder}.item", "\n".join(lines) + "\n")
        wheel.writestr(f"{folder}.user", "\n".join(users) + "\n")
    return path


def test_both_sources_give_the_same_canonical_files(grouplens: Path, recbole: Path) -> None:
    files = convert_grouplens(grouplens)
    assert files == convert_recbole(recbole)
    assert files["u.data"] == RATINGS
    assert files["items.csv"].decode().splitlines() == [
        "item_id,title,release_year,genres",
        "1,Toy Story (1995),1995,Animation|Children's|Comedy",
        "267,unknown,,unknown",
        '543,"Misérables, Les (1995)",1995,Drama|Musical',
        "1201,Marlene Dietrich: Shadow and Light (1996),1996,Documentary",
        "1412,Land Before Time III (1995) (V),1995,Animation|Children's",
    ]
    assert files["users.csv"].decode().splitlines() == [
        "user_id,age,gender,occupation,zip_code",
        "1,24,M,technician,85711",
        "2,53,F,other,94043",
    ]


def test_another_archive_is_refused(tmp_path: Path, recbole: Path) -> None:
    with pytest.raises(FetchError, match="not the archive that was expected"):
        convert_grouplens(recbole)
    (tmp_path / "text").write_text("<html>")
    with pytest.raises(FetchError, match="not the wheel that was expected"):
        convert_recbole(tmp_path / "text")


def failing(text: str) -> Source:
    def get(scratch: Path) -> datasets.Files:
        raise FetchError(text)

    return Source(text.split()[0], get)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the registered data set by one whose hash fits the fixtures."""
    original = datasets.DATASETS["movielens-100k"]
    changed = datasets.Dataset(
        **{**vars(original), "sha256": {"u.data": hashlib.sha256(RATINGS).hexdigest()}}
    )
    monkeypatch.setitem(datasets.DATASETS, "movielens-100k", changed)


@pytest.mark.usefixtures("tiny")
def test_the_second_source_is_used_and_nothing_is_fetched_twice(
    tmp_path: Path, grouplens: Path
) -> None:
    calls = []

    def get(scratch: Path) -> datasets.Files:
        calls.append(scratch)
        return convert_grouplens(grouplens)

    steps: list[str] = []
    sources = [failing("first is down"), Source("second", get)]
    data_dir = tmp_path / "data"
    for _ in range(2):
        target = datasets.fetch("movielens-100k", data_dir, steps.append, sources)
    assert len(calls) == 1
    assert "already" in steps[-1]
    assert {path.name for path in target.iterdir()} == {
        *("u.data", "items.csv", "users.csv", "TERMS.txt", "SOURCE.json")
    }
    assert "do not redistribute" in (target / "TERMS.txt").read_text()
    assert json.loads((target / "SOURCE.json").read_text())["source"] == "second"
    assert [path.name for path in data_dir.iterdir()] == ["movielens-100k"]  # no scratch is left

    (target / "items.csv").write_text("damaged")
    datasets.fetch("movielens-100k", data_dir, steps.append, sources)
    assert len(calls) == 2
    assert (target / "items.csv").read_text().startswith("item_id")


def test_when_every_source_fails_each_reason_is_told(tmp_path: Path, grouplens: Path) -> None:
    sources = [
        failing("first is down"),
        Source("second", lambda scratch: convert_grouplens(grouplens)),  # not the pinned u.data
    ]
    with pytest.raises(FetchError) as error:
        datasets.fetch("movielens-100k", tmp_path / "data", lambda line: None, sources)
    assert "first: first is down" in str(error.value)
    assert f"second: u.data has the SHA-256 {hashlib.sha256(RATINGS).hexdigest()}" in str(
        error.value
    )
    assert list((tmp_path / "data").iterdir()) == []


def test_unknown_and_manual_data_sets(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="Did you mean 'movielens-100k'"):
        datasets.fetch("movielens100k", tmp_path, lambda line: None)
    with pytest.raises(FetchError, match=r"https://www\.kaggle\.com.*configs/retailrocket-kaggle"):
        datasets.fetch("retailrocket-kaggle", tmp_path, lambda line: None)


def test_every_data_set_has_a_configuration() -> None:
    configs = Path(__file__).parents[2] / "configs"
    assert all((configs / f"{name}.yaml").exists() for name in datasets.DATASETS)


@pytest.mark.slow
def test_the_real_download(tmp_path: Path) -> None:
    # From PyPI, which a machine that could install this package can reach.
    source = datasets.DATASETS["movielens-100k"].sources[1]
    target = datasets.fetch("movielens-100k", tmp_path, lambda line: None, [source])
    rows = (target / "u.data").read_bytes()
    assert hashlib.sha256(rows).hexdigest() == datasets.U_DATA_SHA256
    assert rows.count(b"\n") == 100_000
    with (target / "items.csv").open(newline="", encoding="utf-8") as file:
        items = list(csv.DictReader(file))
    assert len(items) == 1682
    assert items[0] == {
        "item_id": "1",
        "title": "Toy Story (1995)",
        "release_year": "1995",
        "genres": "Animation|Children's|Comedy",
    }
    assert sum(not item["release_year"] for item in items) == 1
