"""Downloads of the command that prepares sets: from a local server, by hand, and every way they fail."""

import functools
import hashlib
import http.server
import socket
import threading
import time
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums

from hybrid_jax.data import prepare
from hybrid_jax.data.tfds import downloads

ARCHIVE = np.arange(3 * 64, dtype=np.uint8).tobytes()


class Fetched(tfds.core.GeneratorBasedBuilder):
    """Three pictures in one downloaded file; the address is set by each test."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list] = [
        tfds.core.BuilderConfig(name=name, version="1.0.0") for name in ("plain", "other")
    ]
    url_infos: ClassVar[dict[str, Any]] = {}

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(8, 8, 1))})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager.download(next(iter(self.url_infos))))}

    def _generate_examples(self, path):
        for i, picture in enumerate(np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 8, 8)):
            yield i, {"image": Image.fromarray(picture)}


class ByHand(Fetched):
    """Its licence forbids a download."""

    BUILDER_CONFIGS: ClassVar[list] = []
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = """manual_dir should hold the file
        `pictures.bin`."""

    def _split_generators(self, dl_manager):
        path = dl_manager.manual_dir / "pictures.bin"
        if not path.exists():
            raise FileNotFoundError(f"{path} not found")
        return {"train": self._generate_examples(path)}


def serve(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def address(tmp_path):
    (tmp_path / "www").mkdir()
    (tmp_path / "www/pictures.bin").write_bytes(ARCHIVE)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server, url = serve(functools.partial(Quiet, directory=str(tmp_path / "www")))
    yield url
    server.shutdown()


@pytest.fixture
def expect(monkeypatch):
    """Sets the address of `Fetched` and the content its checksum is of."""

    def set_address(url, content=ARCHIVE, filename="pictures.bin"):
        info = checksums.UrlInfo(len(content), hashlib.sha256(content).hexdigest(), filename)
        monkeypatch.setattr(Fetched, "url_infos", {url: info})
        monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)

    return set_address


def test_a_download(run, address, expect):
    expect(f"{address}/pictures.bin")
    code, lines = run("fetched/plain")
    assert code == 0
    assert "(train 3); use it with --config.data.name=fetched/plain " in lines[-1]
    assert sorted(path.name for path in run.root.iterdir()) == ["downloads", "fetched"]
    assert [path.name for path in run.root.glob("downloads/*")] == ["fetched"]
    # Without a config it is the first of them, as tfds noted beside it.
    assert "already prepared" in run("fetched")[1][0]


@pytest.mark.parametrize("problem", ["refused", "unknown host", "not found", "silent"])
def test_a_failed_download_names_what_to_fetch(run, address, expect, monkeypatch, problem):
    silent = socket.create_server(("127.0.0.1", 0))
    url, reason = {
        "refused": ("http://127.0.0.1:9/a.bin", "Connection refused"),
        "unknown host": ("http://no-such-host.invalid/a.bin", ""),
        "not found": (f"{address}/a.bin", f"Failed to get url {address}/a.bin. HTTP code: 404."),
        "silent": (f"http://127.0.0.1:{silent.getsockname()[1]}/a.bin", "timed out"),
    }[problem]
    monkeypatch.setattr(downloads, "_PATIENCE", (0.3, 0.3))
    # tfds did not note the file's name of some sets.
    expect(url, filename=None)
    start = time.monotonic()
    message = run.error("fetched/plain")
    assert time.monotonic() - start < 15
    assert message.startswith(f"fetched/plain cannot be downloaded ({reason}")
    assert message.endswith(f"; download manually {url} as a.bin, and add --manual_dir=FOLDER with these files")
    assert not run.root.exists()


def test_a_file_fetched_by_hand(run, tmp_path, expect):
    expect("http://127.0.0.1:9/a.bin")
    archive = tmp_path / "pictures.bin"
    archive.write_bytes(ARCHIVE[:-64])
    message = run.error("fetched/plain", f"--manual_dir={tmp_path}")
    assert message == (
        f"{archive} is damaged or is not http://127.0.0.1:9/a.bin (its checksum differs); "
        "delete it and download it again"
    )
    assert not run.root.exists()
    archive.write_bytes(ARCHIVE)
    assert run("fetched/plain", f"--manual_dir={tmp_path}")[0] == 0
    assert not (run.root / "downloads").exists()


def test_a_damaged_download(run, address, expect):
    expect(f"{address}/pictures.bin", ARCHIVE[1:])
    assert run.error("fetched/plain").endswith("(its checksum differs); delete it and download it again")
    assert not run.root.exists()


def test_a_set_that_must_be_fetched_by_hand(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong/other.bin").write_bytes(b"")
    reasons = {
        run.root / "downloads/manual": "the folder is empty or missing",
        tmp_path / "empty": "the folder is empty or missing",
        tmp_path / "wrong": f"{tmp_path}/wrong/pictures.bin not found",
    }
    for folder, reason in reasons.items():
        flags = () if folder.is_relative_to(run.root) else (f"--manual_dir={folder}",)
        wanted = "instructions of tfds: manual_dir should hold the file `pictures.bin`."
        line = f"by_hand must be downloaded manually to --manual_dir={folder} ({reason}); {wanted}"
        assert run.error("by_hand", *flags) == line
    (tmp_path / "wrong/pictures.bin").write_bytes(ARCHIVE)
    assert run("by_hand", f"--manual_dir={tmp_path}/wrong")[0] == 0


def test_imagenet_says_which_files_it_wants(run, monkeypatch):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: name)
    message = run.error("imagenet2012")
    assert "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar" in message
