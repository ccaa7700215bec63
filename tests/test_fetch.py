"""Folders of buckets, brought to this machine; here the bucket is a folder that fsspec opens by an address."""

import pytest

from hybrid_jax.errors import UserError
from hybrid_jax.fetch import fetch


@pytest.fixture
def bucket(tmp_path):
    (tmp_path / "bucket" / "deep").mkdir(parents=True)
    (tmp_path / "bucket" / "one").write_bytes(b"1" * 3000)
    (tmp_path / "bucket" / "deep" / "two").write_bytes(b"22")
    return tmp_path / "bucket"


def test_all_files_come_once_and_what_was_cut_off_comes_again(bucket, tmp_path):
    address, folder = f"local://{bucket}", tmp_path / "here"
    assert fetch(address, folder) == (2, 0)
    assert fetch(address, folder) == (0, 2)
    (folder / "one").write_bytes(b"1" * 1000)
    assert fetch(f"{address}/", folder) == (1, 1)
    assert {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()} == {
        "one": 3000, "deep/two": 2,
    }  # fmt: skip


@pytest.mark.parametrize("address, told", [
    ("bucket/data", "must be an address"),
    ("local:///nonexistent/data", "holds no files"),
    ("nosuch://bucket/data", "cannot be copied"),
])  # fmt: skip
def test_what_cannot_be_fetched_gets_one_line(tmp_path, address, told):
    with pytest.raises(UserError, match=told) as caught:
        fetch(address, tmp_path / "here")
    assert "\n" not in str(caught.value)


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").store.clear()
    with fsspec.open("memory://data/../../out", "wb") as file:
        file.write(b"x")
    system = fsspec.filesystem("memory")
    if not any(".." in name for name in system.store):
        pytest.skip("this fsspec resolves such names itself")
    with pytest.raises(UserError, match="leads out"):
        fetch("memory://data", tmp_path / "here")
