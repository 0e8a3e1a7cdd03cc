"""Drives: what users write, and which images will do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crannog.core.drives import Drive, DriveFile, DriveKind, FileKind, absent_file, check_drive, parse_drive, strip_host
from crannog.errors import StartError, ValueRefusedError

CDROM, HD = DriveKind.CDROM, DriveKind.HD
IMAGE = DriveFile("/srv/i", FileKind.FILE)


@pytest.mark.parametrize(
    ("text", "drive"),
    [
        ("/srv/i", Drive(CDROM, "/srv/i")),
        ("cdrom:/srv/i", Drive(CDROM, "/srv/i")),
        ("cdrom:dom0:/srv/i", Drive(CDROM, "/srv/i")),
        ("hd:/srv/i", Drive(HD, "/srv/i")),
        ("hd:dom0:/srv/a:b c", Drive(HD, "/srv/a:b c")),
        ("/srv/hd:x", Drive(CDROM, "/srv/hd:x")),
        ("hd:/srv/\udcff.img", Drive(HD, "/srv/\udcff.img")),
    ],
)
def test_what_is_a_drive(text: str, drive: Drive) -> None:
    assert parse_drive(text) == drive
    assert parse_drive(text, may_be_device=True).may_be_device


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "'' is not a drive; write cdrom:PATH or hd:PATH"),
        ("hd", "is not a drive"),
        ("image.iso", "is not a drive"),
        ("./image.iso", "is not a drive"),
        ("floppy:/srv/i", "is not a drive"),
        ("HD:/srv/i", "is not a drive"),
        ("dom0:/srv/i", "is not a drive"),
        ("hd:", "'' is not an absolute path"),
        ("hd:srv/i", "'srv/i' is not an absolute path; name the image from / on"),
        ("hd:dom0:srv/i", "is not an absolute path"),
        ("cdrom:work:/srv/i", "'work:/srv/i' is not on this host; a VM can be started from images of dom0 only"),
        ("hd:sys-usb:sda", "is not on this host"),
        ("hd:dom0:dom0:/srv/i", "is not on this host"),
        ("hd:/srv/\0i", "zero byte"),
        ("/srv/\0i", "zero byte"),
    ],
)
def test_what_is_none(text: str, sentence: str) -> None:
    with pytest.raises(ValueRefusedError) as caught:
        parse_drive(text)
    assert sentence in str(caught.value)


@given(st.text())
def test_any_text_is_a_drive_or_refused(text: str) -> None:
    try:
        drive = parse_drive(text)
    except ValueRefusedError:
        return
    assert drive.path.startswith("/")
    assert text.endswith(drive.path)


def test_a_path_of_the_host_needs_no_prefix() -> None:
    assert strip_host("dom0:image.iso") == strip_host("image.iso") == "image.iso"


def test_only_a_disk_is_written_to() -> None:
    assert [Drive(kind, "/i").is_writable for kind in (CDROM, HD)] == [False, True]


@pytest.mark.parametrize(
    ("kind", "may_be_device", "file", "problem"),
    [
        (CDROM, False, absent_file("/srv/i"), "there is no such file"),
        (CDROM, True, absent_file("/srv/i"), "there is no such file"),
        (CDROM, True, DriveFile("/srv", FileKind.OTHER), "it is not a regular file"),
        (HD, False, DriveFile("/dev/sda", FileKind.DEVICE), "it is a device of this host; root may name one"),
        (HD, False, DriveFile("/h/p/i", FileKind.FILE, owner="/h"), "it is inside /h, which Crannog itself keeps"),
        (HD, True, DriveFile("/h/p/i", FileKind.DEVICE, owner="/h"), "it is inside /h"),
        (CDROM, False, DriveFile("/srv/i", FileKind.FILE, is_readable=False), "may not read it"),
        (HD, False, DriveFile("/srv/i", FileKind.FILE, is_writable=False), "may not write it.*, or use it as a cdrom"),
    ],
)
def test_images_that_will_not_do(kind: DriveKind, may_be_device: bool, file: DriveFile, problem: str) -> None:
    with pytest.raises(StartError, match=f"work cannot be started with the image /srv/i: .*{problem}"):
        check_drive("work", Drive(kind, "/srv/i", may_be_device), file)


@pytest.mark.parametrize(
    ("drive", "file"),
    [
        (Drive(CDROM, "/srv/i"), IMAGE),
        (Drive(HD, "/srv/i"), IMAGE),
        (Drive(CDROM, "/srv/i"), DriveFile("/srv/i", FileKind.FILE, is_writable=False)),
        (Drive(HD, "/dev/sda", may_be_device=True), DriveFile("/dev/sda", FileKind.DEVICE)),
    ],
)
def test_images_that_will_do(drive: Drive, file: DriveFile) -> None:
    check_drive("work", drive, file)
