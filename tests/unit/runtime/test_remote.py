"""Files behind URIs: S3 as a server on this machine speaks it, and plain files."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedapt_runtime import remote
from fedapt_runtime.cli import main
from fedapt_runtime.errors import ImageError, InputError, MissingDependency
from fedapt_runtime.pipeline import decode_ahead, decode_one
from fedapt_runtime.preprocess import Preprocessing
from fedapt_runtime.remote import is_uri, read_remote
from fedapt_runtime.sources import count_images, find_images

fs = pytest.importorskip("pyarrow.fs", reason="pyarrow is not installed")
PREPROCESSING = Preprocessing((2, 2), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
NAMES = ("in/a.png", "in/sub dir/z.jpg", "in/sub dir/ä 1%20#?.png", "other.png")


def encode(colour: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3, 3), (colour, colour, colour)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket with four images and a text, in an S3 server in this process."""
    server = pytest.importorskip("moto.server", reason="moto is not installed")
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    endpoint = "http://{}:{}".format(*moto.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        remote._open_file_system.cache_clear()
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="photos")
        for i, name in enumerate(NAMES):
            client.put_object(Bucket="photos", Key=name, Body=encode(10 * i))
        client.put_object(Bucket="photos", Key="in/notes.txt", Body=b"no image")
        client.put_object(Bucket="photos", Key="broken.png", Body=b"text")
        client.close()
        yield "s3://photos"
        remote._open_file_system.cache_clear()
    moto.stop()


def test_a_prefix_stands_for_its_images_sorted(bucket: str) -> None:
    assert list(find_images([f"{bucket}/in"])) == [f"{bucket}/{name}" for name in NAMES[:3]]
    assert list(find_images([f"{bucket}/other.png"])) == [f"{bucket}/other.png"]
    assert count_images([f"{bucket}/in"]) is None  # listing twice would cost more than it tells


def test_images_are_read_and_bad_ones_are_rows(bucket: str, tmp_path: Path) -> None:
    local = tmp_path / "local.png"
    local.write_bytes(encode(70))
    uris = [f"{bucket}/{name}" for name in NAMES]
    bad = [f"{bucket}/none.png", "s3://nobody/a.png", f"{bucket}/broken.png"]
    found = list(decode_ahead([*uris, *bad, str(local)], PREPROCESSING, workers=3, ahead=4))
    assert [item.name for item in found] == [*uris, *bad, str(local)]
    colours = [None if d.pixels is None else int(d.pixels[0, 0, 0]) for d in found]
    assert colours == [0, 10, 20, 30, None, None, None, 70]
    assert f"{bad[0]}: found no such file; expected an image" in str(found[4].error)
    assert "s3://nobody/a.png: found " in str(found[5].error)
    assert f"{bad[2]}: found not an image of a known format" in str(found[6].error)


def test_a_list_may_name_uris(bucket: str, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text(f"{bucket}/other.png\n/somewhere/a.png\n")
    assert list(find_images([names])) == [f"{bucket}/other.png", "/somewhere/a.png"]


def test_what_is_not_there_is_refused(bucket: str) -> None:
    with pytest.raises(
        InputError, match=r"s3://photos/none: found no such file or folder; expected a file, a"
    ):
        list(find_images([f"{bucket}/none"]))
    with pytest.raises(InputError, match=r"abc://x/y: found .+; expected a file.*credentials"):
        list(find_images(["abc://x/y"]))
    assert list(find_images([f"{bucket}/in/notes.txt"])) == [f"{bucket}/in/notes.txt"]


def test_local_files_by_uri(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(encode(50))
    (tmp_path / "notes.txt").write_text("no image")
    uri = f"file://{tmp_path}"
    assert list(find_images([uri])) == [f"{uri}/a%20b.png"]
    for name in ("a%20b.png", "a b.png"):  # as a URI has it, and as people write it
        assert list(find_images([f"{uri}/{name}"])) == [f"{uri}/{name}"]
        pixels = decode_one(f"{uri}/{name}", "a", PREPROCESSING).pixels
        assert pixels is not None
        assert np.array_equal(pixels, np.full((2, 2, 3), 50))


def test_a_file_over_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(encode(50))
    monkeypatch.setattr(remote, "MAX_FILE_BYTES", 20)
    with pytest.raises(ImageError, match=r"found a file of \d+ bytes, over the limit of 20;"):
        read_remote(f"file://{tmp_path}/a.png")


@pytest.mark.parametrize(
    ("uri", "root", "path"),
    [
        ("s3://bucket/in/a b#?.png", "s3://bucket/", "bucket/in/a b#?.png"),
        ("gs://bucket", "gs://bucket/", "bucket"),
        ("file:///in/a.png", "file:///", "/in/a.png"),
        ("hdfs://node:8020/in/a.png", "hdfs://node:8020/", "/in/a.png"),
    ],
)
def test_how_a_uri_is_taken_apart(
    uri: str, root: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_open_file_system", lambda root: f"of {root}")
    assert remote._resolve(uri) == (f"of {root}", path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/a.png", True),
        ("gs://bucket/a.png", True),
        ("photos/a.png", False),
        ("C://a.png", False),
        ("/s3://a.png", False),
        ("a.zip::b.png", False),
    ],
)
def test_what_a_uri_is(text: str, expected: bool) -> None:
    assert is_uri(text) is expected
    assert not is_uri(Path(text))


def test_without_pyarrow_the_line_that_brings_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    remote._open_file_system.cache_clear()
    monkeypatch.setitem(sys.modules, "pyarrow.fs", None)
    for use in (lambda: list(find_images(["s3://a/b"])), lambda: read_remote("s3://a/b.png")):
        with pytest.raises(MissingDependency, match=r"pip install 'fedapt-runtime\[parquet\]'"):
            use()


def test_tables_of_paths(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = tmp_path / "names.parquet"
    parquet.write_table(
        pyarrow.table({"path": ["a.png", None, "s3://b/c.png"], "x": [1, 2, 3]}), table
    )
    assert list(find_images([table])) == ["a.png", "s3://b/c.png"]
    parquet.write_table(pyarrow.table({"path": ["", None]}), table)
    with pytest.raises(
        InputError,
        match=r"found a table without images, with table rows without a path \(2\); expected",
    ):
        list(find_images([table]))
    parquet.write_table(pyarrow.table({"name": ["a.png"]}), table)
    with pytest.raises(InputError, match=r"names\.parquet: found a table without the column path"):
        list(find_images([table]))
    table.write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(InputError, match=r"names\.parquet: found a table that cannot be read"):
        list(find_images([table]))


def classify(model: Path, *arguments: str) -> int:
    return main(["classify", str(model), *arguments])


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_predictions_go_to_a_bucket(
    bucket: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    out = f"{bucket}/out/sub/rows{suffix}"
    for _ in range(2):  # the second replaces the first
        assert classify(tiny_model, f"{bucket}/in", "--out", out) == 0
    assert list(tmp_path.iterdir()) == []
    assert classify(tiny_model, f"{bucket}/in", "--out", f"here{suffix}") == 0
    assert read_remote(out) == (tmp_path / f"here{suffix}").read_bytes()


def test_predictions_go_to_a_file_by_uri(
    tiny_model: Path, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    image = str(next(tiny_images.glob("*/*/*.png")))
    assert classify(tiny_model, image, "--out", f"file://{tmp_path}/a b.jsonl") == 0
    assert json.loads((tmp_path / "a b.jsonl").read_text("utf-8"))["path"] == image
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a b.jsonl", "work"]
    # into the working folder, where the unfinished job keeps its rows
    for _ in range(2):
        assert classify(tiny_model, image, "--out", f"file://{tmp_path}/work/a.csv") == 0
        assert [p.name for p in (tmp_path / "work").iterdir()] == ["a.csv"]


@pytest.mark.parametrize(
    ("out", "text"),
    [
        (
            "s3://nobody/rows.csv",
            "s3://nobody/rows.csv: found no folder or bucket nobody; expected",
        ),
        ("file:///no/such/rows.csv", "found no folder /no/such; expected a folder that can be"),
        ("abc://x/rows.csv", "abc://x/rows.csv: found "),
        ("s3://photos/rows.txt", "s3://photos/rows.txt: found the suffix '.txt'; expected .jsonl"),
    ],
)
def test_outputs_that_cannot_be_are_refused_before_any_work(
    bucket: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    out: str,
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert classify(tiny_model, f"{bucket}/in", "--out", out) == 8
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["refused", "short"])
def test_rows_that_cannot_be_delivered_are_kept(
    bucket: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    out, real = f"{bucket}/kept/{fault}.csv", fs.copy_files

    def copy(source: str, target: str, *systems: object) -> None:
        if fault == "refused":
            raise OSError("access denied")
        cut = tmp_path / "cut"
        cut.write_bytes(Path(source).read_bytes()[:-1])
        real(str(cut), target, *systems)
        cut.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(fs, "copy_files", copy)
        assert classify(tiny_model, f"{bucket}/in", "--out", out) == 8
    told = capsys.readouterr().err
    assert f"error: {out}: found " in told
    assert ("access denied" if fault == "refused" else " bytes of ") in told
    assert "--resume goes on" in told
    assert [p.name for p in tmp_path.iterdir()] == [f"{fault}.csv.part"]
    assert classify(tiny_model, f"{bucket}/in", "--out", out, "--resume") == 0
    assert "3 images in " in capsys.readouterr().err
    assert classify(tiny_model, f"{bucket}/in", "--out", out, "--resume") == 0
    assert "finished before: 3 rows, nothing to do" in capsys.readouterr().err
    assert len(read_remote(out).splitlines()) == 4
    assert list(tmp_path.iterdir()) == []
