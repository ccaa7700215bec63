"""The Dockerfile, which no engine builds here: linted, pinned, not root, with nothing missing that it copies."""

import re
import subprocess

from launch_scripts import ROOT, tool

TEXT = (ROOT / "Dockerfile").read_text()


def test_hadolint_finds_nothing():
    done = subprocess.run([tool("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_is_pinned_and_does_not_run_as_root():
    (base,) = re.findall(r"^FROM (\S+)$", TEXT, re.MULTILINE)
    assert re.fullmatch(r"python:3\.12-[a-z]+-[a-z]+@sha256:[0-9a-f]{64}", base)
    assert "--constraint constraints-py312.txt" in TEXT and "latest" not in TEXT
    (user,) = re.findall(r"^USER (\S+)$", TEXT, re.MULTILINE)
    assert user == "1000" and TEXT.index("\nUSER ") < TEXT.index("\nENTRYPOINT [")


def test_each_accelerator_has_extras_that_exist():
    extras = re.findall(r"^ +(\w+)\) extras=(\S+) ;;", TEXT, re.MULTILINE)
    assert [name for name, _ in extras] == ["cpu", "tpu", "gpu"] and "\nARG ACCELERATOR=cpu\n" in TEXT
    offered = set(re.findall(r'^        "(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE)) | {"compress"}
    for _, names in extras:
        assert set(names.split(",")) <= offered


def test_all_that_is_copied_is_in_the_build_context():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (.*)$", TEXT, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists() and name.rstrip("/") in kept
