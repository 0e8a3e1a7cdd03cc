"""What is put into images and into the package for Debian guests: the same list, complete, owned by root."""

import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from crannog.guest import agent
from crannog.images.guestfiles import GuestFile, list_agent_files, list_guest_files

pytestmark = pytest.mark.timeout(60)
TOP = Path(__file__).resolve().parents[2]
GUEST = Path(agent.__file__).parent
AGENT = Path(agent.__file__).read_bytes()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deb")
    out = subprocess.run([TOP / "scripts/guest-deb", folder], stdout=subprocess.PIPE, check=True, timeout=50)
    return Path(out.stdout.decode().split()[0])


def test_the_package_has_exactly_the_files_of_the_list(package: Path) -> None:
    tar = package.with_suffix(".tar")
    with tar.open("wb") as output:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", package], stdout=output, check=True)
    with tarfile.open(tar) as archive:
        members = {member.name.removeprefix("./"): member for member in archive}
        for file in list_agent_files(AGENT):
            member = members.pop(file.path)
            assert (member.uid, member.gid) == (0, 0)
            assert member.linkname == file.target
            if not file.target:
                assert member.mode == file.mode
            if file.content is not None:
                content = archive.extractfile(member)
                assert content is not None
                assert content.read() == file.content
    assert all(member.isdir() and member.mode == 0o755 and member.uid == 0 for member in members.values())


def test_the_package_is_the_same_each_time(package: Path, tmp_path: Path) -> None:
    subprocess.run([TOP / "scripts/guest-deb", tmp_path], stdout=subprocess.PIPE, check=True)
    assert (tmp_path / package.name).read_bytes() == package.read_bytes()


def test_the_packages_settings_are_its_files_below_etc(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--control", package, tmp_path / "control"], check=True)
    settings = (tmp_path / "control/conffiles").read_text().split()
    assert settings == [
        "/" + file.path for file in list_agent_files(AGENT) if file.content is not None and file.path.startswith("etc/")
    ]
    for script in ("postinst", "prerm"):
        assert stat.S_IMODE((tmp_path / "control" / script).stat().st_mode) == 0o755
        subprocess.run(["sh", "-n", tmp_path / "control" / script], check=True)


def test_every_file_of_an_image_has_its_folder_and_is_there_once() -> None:
    files = list_guest_files("host", AGENT)
    paths = [file.path for file in files]
    assert len(paths) == len(set(paths))
    assert {file.path for file in list_agent_files(AGENT)} < set(paths)
    folders = {file.path for file in files if file.content is None and not file.target}
    for path in paths:
        if path.startswith(("usr/lib/crannog/", "usr/lib/qubes/", "etc/qubes")):
            assert str(Path(path).parent) in folders | {"etc"}


def test_links_lead_to_files_of_the_list() -> None:
    files: dict[str, GuestFile] = {file.path: file for file in list_agent_files(AGENT)}
    links = [file for file in files.values() if file.target and not file.target.startswith("/dev/tcp/")]
    assert len(links) == 12
    for link in links:
        target = link.target if link.target.startswith("/") else f"/{Path(link.path).parent}/{link.target}"
        assert files[target.removeprefix("/")].mode == 0o755


def test_programs_begin_with_an_interpreter_and_are_executable() -> None:
    for file in list_agent_files(AGENT):
        if file.content is not None and file.mode == 0o755 and not file.path.endswith("agent.py"):
            assert file.content.startswith((b"#!/bin/sh\n", b"#!/usr/bin/python3 -IS\n", b"#!/bin/busybox sh\n"))
    for path in (*GUEST.glob("services/*"), *GUEST.glob("rpc-config/*")):
        assert path.name.startswith("qubes."), "a file that would not be installed"


@pytest.mark.parametrize("path", sorted(GUEST.glob("services/*")), ids=lambda path: path.name)
def test_services_are_programs_without_errors_of_syntax(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) & 0o111
    if path.read_bytes().startswith(b"#!/bin/sh"):
        subprocess.run(["sh", "-n", path], check=True)
    else:
        compile(path.read_bytes(), path, "exec")
