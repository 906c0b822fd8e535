"""Public data sets: where they come from, under which terms, and how to fetch them.

Imports nothing heavy. Every way to get a data set ends in the same canonical files, verified and
put in place by one rename, so that an interrupted fetch leaves nothing behind.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemas.settings import ConfigError, nearest

GROUPLENS_URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
GROUPLENS_SHA256 = "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"
RECBOLE_REQUIREMENT = "recbole==1.2.1"
RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
U_DATA_SHA256 = "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490"

TERMS_FILE = "TERMS.txt"
SOURCE_FILE = "SOURCE.json"  # which source it was, and the SHA-256 of every file

_CONNECT_SECONDS = 10
_PIP_SECONDS = 300
_GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
# "Toy Story (1995)"; one film has "(1995) (V)", for video.
_TITLE_YEAR = re.compile(r"\((\d{4})\)(?: \(V\))?$")

Files = dict[str, bytes]
Progress = Callable[[str], None]


class FetchError(ConfigError):
    """A data set cannot be fetched; the text says what was tried."""


@dataclass(frozen=True)
class Source:
    """One way to get a data set."""

    name: str
    get: Callable[[Path], Files]  # given a scratch directory, returns the canonical files


@dataclass(frozen=True)
class Dataset:
    """A public data set."""

    name: str
    description: str
    home: str  # web page
    terms: str
    sources: tuple[Source, ...]  # tried in order; none where its terms ask for a log-in
    sha256: dict[str, str]  # canonical file -> hash, where every source gives the same bytes


def get(name: str) -> Dataset:
    """Returns a data set by name.

    Raises:
      FetchError: there is none of that name.
    """
    if name not in DATASETS:
        raise FetchError(
            f"There is no data set '{name}'.{nearest(name, list(DATASETS))} Known:"
            f" {', '.join(DATASETS)}."
        )
    return DATASETS[name]


def fetch(
    name: str, data_dir: Path, progress: Progress, sources: Sequence[Source] | None = None
) -> Path:
    """Fetches a data set unless it is there already.

    Args:
      name: key of DATASETS.
      data_dir: the files end up in `<data_dir>/<name>/`.
      progress: called with one line per step.
      sources: other ways to get it than the registered ones.

    Returns:
      The directory with the files, TERMS.txt among them.

    Raises:
      FetchError: unknown name, or every source failed: says why each did.
    """
    dataset = get(name)
    target = data_dir / name
    if _is_complete(target, dataset):
        progress(f"{name} is already in {target}")
        return target
    ways = dataset.sources if sources is None else sources
    if not ways:
        raise FetchError(
            f"{name} cannot be fetched automatically: {dataset.terms} Get it from {dataset.home};"
            f" configs/{name}.yaml says which files go where."
        )
    data_dir.mkdir(parents=True, exist_ok=True)
    failures = []
    for source in ways:
        progress(f"{name}: trying {source.name}")
        # Beside the target, so that the final rename stays on one file system.
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=data_dir) as scratch:
            try:
                files = source.get(Path(scratch))
                _verify(files, dataset)
            except FetchError as error:
                failures.append(f"  {source.name}: {error}")
                progress(f"{name}: {source.name} failed: {error}")
                continue
            _put_in_place(files, dataset, source, Path(scratch) / "ready", target)
        progress(f"{name}: {len(files)} files in {target}")
        return target
    raise FetchError(f"{name} could not be fetched:\n" + "\n".join(failures))


def _verify(files: Files, dataset: Dataset) -> None:
    for file, expected in dataset.sha256.items():
        actual = _sha256(files[file])
        if actual != expected:
            raise FetchError(f"{file} has the SHA-256 {actual}, but {expected} was expected")


def _is_complete(target: Path, dataset: Dataset) -> bool:
    try:
        recorded: dict[str, str] = json.loads((target / SOURCE_FILE).read_text())["sha256"]
        return {**recorded, **dataset.sha256} == recorded and all(
            _sha256((target / file).read_bytes()) == expected for file, expected in recorded.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        # Absent, or damaged in whatever way: fetched again.
        return False


def _put_in_place(
    files: Files, dataset: Dataset, source: Source, ready: Path, target: Path
) -> None:
    ready.mkdir()
    record = {
        "source": source.name,
        "sha256": {file: _sha256(content) for file, content in sorted(files.items())},
    }
    for file, content in files.items():
        (ready / file).write_bytes(content)
    (ready / TERMS_FILE).write_text(f"{dataset.terms}\n{dataset.home}\n")
    (ready / SOURCE_FILE).write_text(json.dumps(record, indent=2) + "\n")
    if target.exists():
        shutil.rmtree(target)
    ready.rename(target)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- MovieLens-100K ----------------------------------------------------------------------------


def _from_grouplens(scratch: Path) -> Files:
    archive = scratch / "ml-100k.zip"
    try:
        with (
            urllib.request.urlopen(GROUPLENS_URL, timeout=_CONNECT_SECONDS) as response,
            archive.open("wb") as file,
        ):
            shutil.copyfileobj(response, file)
    except (urllib.error.URLError, OSError) as error:
        raise FetchError(f"{GROUPLENS_URL} cannot be reached: {error}") from error
    _check_download(archive, GROUPLENS_SHA256)
    return convert_grouplens(archive)


def _from_pypi(scratch: Path) -> Files:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check"]
    command += ["--dest", str(scratch), RECBOLE_REQUIREMENT]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"pip could not download {RECBOLE_REQUIREMENT}: {error}") from error
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise FetchError(f"pip could not download {RECBOLE_REQUIREMENT}: {reason[0]}")
    _check_download(wheels[0], RECBOLE_SHA256)
    return convert_recbole(wheels[0])


def _check_download(file: Path, expected: str) -> None:
    actual = _sha256(file.read_bytes())
    if actual != expected:
        raise FetchError(
            f"{file.name} has the SHA-256 {actual}, but {expected} was expected: the download is"
            " damaged, or the file was replaced"
        )


def convert_grouplens(archive: Path) -> Files:
    """Converts GroupLens's own archive: u.data, u.item, u.user.

    Raises:
      FetchError: it is not such an archive.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            ratings = content.read("ml-100k/u.data")
            items = content.read("ml-100k/u.item").decode("latin-1")
            users = content.read("ml-100k/u.user").decode("latin-1")
        rows = []
        for line in _lines(items):
            item_id, title, *_, flags = line.split("|", 5)
            genres = [
                genre for genre, flag in zip(_GENRES, flags.split("|"), strict=True) if flag == "1"
            ]
            rows.append(_item_row(item_id, title.strip(), genres))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise FetchError(f"{archive.name} is not the archive that was expected: {error}") from error
    return {
        "u.data": ratings,
        "items.csv": _items_csv(rows),
        "users.csv": _users_csv(line.split("|") for line in _lines(users)),
    }


def convert_recbole(wheel: Path) -> Files:
    """Converts the copy inside the recbole wheel.

    Its rating file is u.data below a header. Its item file has the title without the year.

    Raises:
      FetchError: the wheel holds no such files.
    """
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    try:
        with zipfile.ZipFile(wheel) as content:
            ratings = content.read(f"{folder}.inter")
            items = content.read(f"{folder}.item").decode()
            users = content.read(f"{folder}.user").decode()
        rows = []
        for line in _lines(items)[1:]:
            item_id, title, year, genres = line.split("\t")
            if year == "unkonwn":  # sic; the one item without a film behind it
                title = "unknown"
            else:
                title = f"{title} ({year})"
            rows.append(_item_row(item_id, title, genres.split()))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise FetchError(f"{wheel.name} is not the wheel that was expected: {error}") from error
    return {
        "u.data": ratings.split(b"\n", 1)[1],
        "items.csv": _items_csv(rows),
        "users.csv": _users_csv(line.split("\t") for line in _lines(users)[1:]),
    }


def _lines(text: str) -> list[str]:
    # Not splitlines(), which also cuts at characters that latin-1 text may contain.
    return text.strip("\n").split("\n")


def _item_row(item_id: str, title: str, genres: Sequence[str]) -> list[str]:
    year = _TITLE_YEAR.search(title)
    return [item_id, title, year.group(1) if year else "", "|".join(genres)]


def _items_csv(rows: Iterable[Sequence[str]]) -> bytes:
    return _csv_bytes(["item_id", "title", "release_year", "genres"], rows)


def _users_csv(rows: Iterable[Sequence[str]]) -> bytes:
    return _csv_bytes(["user_id", "age", "gender", "occupation", "zip_code"], rows)


def _csv_bytes(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name="movielens-100k",
            description="100,000 ratings of 1,682 films by 943 users, 1997 to 1998",
            home="https://grouplens.org/datasets/movielens/100k/",
            terms=(
                "MovieLens-100K was collected by GroupLens Research at the University of Minnesota."
                " It may be used for research under these conditions: do not state or imply any"
                " endorsement by the University of Minnesota or GroupLens; acknowledge the data set"
                " in publications (F. M. Harper and J. A. Konstan, The MovieLens Datasets: History"
                " and Context, ACM TiiS 5(4), 2015); do not redistribute the data without separate"
                " permission; no commercial or revenue-bearing use without permission of GroupLens."
            ),
            sources=(
                Source("GroupLens", _from_grouplens),
                Source(f"PyPI ({RECBOLE_REQUIREMENT})", _from_pypi),
            ),
            sha256={"u.data": U_DATA_SHA256},
        ),
        Dataset(
            name="retailrocket",
            description="views, carts and purchases of a shop, filtered, without times",
            home="https://github.com/caserec/Datasets-for-Recommender-Systems",
            terms="the original is published on Kaggle under CC BY-NC-SA 4.0.",
            sources=(),
            sha256={},
        ),
        Dataset(
            name="retailrocket-kaggle",
            description="2.7 million views, carts and purchases of a shop over 4.5 months",
            home="https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset",
            terms="Kaggle asks for a log-in; CC BY-NC-SA 4.0.",
            sources=(),
            sha256={},
        ),
        Dataset(
            name="kuairand-pure",
            description="1.4 million impressions of short videos with clicks, likes and long views",
            home="https://kuairand.com",
            terms="CC BY-SA 4.0; the archive is served by Zenodo and Google Drive.",
            sources=(),
            sha256={},
        ),
        Dataset(
            name="aliccp",
            description="85 million impressions of a shop with clicks and purchases, without times",
            home="https://tianchi.aliyun.com/dataset/408",
            terms="Tianchi asks for a log-in; for academic use only.",
            sources=(),
            sha256={},
        ),
    )
}
