"""Exact bytes of the methods about pools, kernels and volumes, and of what other programs and guests' services call."""

import pytest

from crannog.adapters.storage.pool_driver import find_drivers
from tests.unit.bytes_world import (
    EXPECTED_ARGUMENT,
    EXPECTED_PAYLOAD,
    ONLY_DOM0,
    UNEXPECTED_ARGUMENT,
    UNEXPECTED_PAYLOAD,
    Talk,
    absent,
    check,
    denied,
    elsewhere,
    error,
    in_use,
    not_yet,
    ok,
    protocol,
    refused,
    runs,
    say,
    talk,
)

DRIVERS = [
    (name, " ".join(option.name for option in driver.options)) for name, driver in sorted(find_drivers().items())
]
NO_POOL = denied("Argument not in 'pools'")
NO_DRIVER = error(
    "QubesException",
    "NotFoundError",
    f"there is no driver 'no%%pe' for pools (there: {', '.join(sorted(find_drivers()))})",
)
NO_VOLUME = denied("Argument not in 'work volumes'")
ENCRYPTED = not_yet("volumes whose content is encrypted with a key that is forgotten cannot be made yet")
NO_TOKEN = error(
    "QubesVolumeCopyTokenNotFoundError",
    "TokenNotFoundError",
    "there is no such token for a copy: each is good once, for 300 s; "
    "ask for another one with admin.vm.volume.CloneFrom",
)
NO_REVISION = error(
    "QubesVolumeRevisionNotFoundError",
    "RevisionNotFoundError",
    "volume root of debian has no revision 'nope'; 'qvm-volume info debian:root' lists those that it has",
)
MAYBE = refused("'maybe%%' is neither True nor False")
PRIVATE = (
    "pool=vm-pool\nvid=work-00000003/private\nsize={size}\nusage=<N>\nrw={rw}\nsource=\n"
    "path=<HOME>/pools/vm-pool/work-00000003/private.img\n"
    "save_on_stop=True\nsnap_on_start=False\nrevisions_to_keep=0\nephemeral=False\n"
)

HOSTS = (
    "pool=linux-kernel\nvid={vid}\nsize={size}\nusage=<N>\nrw=False\nsource=\npath={path}\n"
    "save_on_stop=False\nsnap_on_start=False\nrevisions_to_keep=0\nephemeral=False\n"
)


def no_number(text: str) -> bytes:
    return protocol(f"'{text}' is not a decimal number of at most 19 digits")


def no_updates(vm: str) -> bytes:
    return error("QubesFeatureNotFoundError", "FeatureNotFoundError", f"{vm} has no feature 'updates-available'")


def layer(purpose: str) -> bytes:
    return refused(
        f"volume root of work cannot {purpose}: it is made anew from the template at each start; "
        "create the VM with '--class StandaloneVM' instead"
    )


def hosts(refusal: str) -> bytes:
    return refused(
        f"volume kernel of work {refusal}: it belongs to the kernel, which 'qvm-prefs work kernel' chooses and "
        "'crannog kernel add' adds"
    )


def empty(refusal: str) -> bytes:
    return refused(f"volume volatile of work {refusal}: it is empty at each start")


def nothing_to_copy(name: str) -> bytes:
    return refused(f"volume {name} of work has no content that could be copied")


def nothing_to_export(name: str) -> bytes:
    return refused(f"volume {name} of work has no content that could be exported")


def pool_in_use(message: str) -> bytes:
    return error("QubesPoolInUseError", "PoolInUseError", message)


def takes_stream(method: str) -> bytes:
    return protocol(
        f"{method} takes its data as a stream, for which a request is too short: call it by qrexec, or use "
        "'qvm-volume import'"
    )


POOLS = (
    talk(
        "pools",
        say("admin.pool.List+ dom0", ok("vm-pool\nlinux-kernel\n")),
        say("admin.pool.ListDrivers+ dom0",
            ok("".join(f"{name} {options}\n" for name, options in DRIVERS))),
        say(
            "admin.pool.Info+vm-pool dom0",
            ok(
                "dir_path=<HOME>/pools/vm-pool\ndriver=qcow2\nephemeral_volatile=False\nname=vm-pool\n"
                "revisions_to_keep=1\nsize=<N>\nusage=<N>\n"
            ),
        ),
        say("admin.pool.Info+linux-kernel dom0",
            ok("dir_path=<HOME>/pools/linux-kernel\ndriver=linux-kernel\nname=linux-kernel\nsize=<N>\nusage=<N>\n")),
        say("admin.pool.UsageDetails+vm-pool dom0", ok("data_size=<N>\ndata_usage=<N>\n")),
        say("admin.pool.volume.List+linux-kernel dom0", ok("6.1.0-test\n")),
        say(
            "admin.pool.volume.List+vm-pool dom0",
            ok(
                "debian-00000001/private\ndebian-00000001/root\ndebian-00000001/volatile\n"
                "dvm-00000004/private\ndvm-00000004/root\ndvm-00000004/volatile\n"
                "fedora-00000002/private\nfedora-00000002/root\nfedora-00000002/volatile\n"
                "sys-net-00000005/private\nsys-net-00000005/root\nsys-net-00000005/volatile\n"
                "work-00000003/private\nwork-00000003/root\nwork-00000003/volatile\n"
            ),
        ),
        say("admin.pool.Add+qcow2 dom0", ok(), b"name=fast\nrevisions_to_keep=2\n"),
        say("admin.pool.List+ dom0", ok("vm-pool\nlinux-kernel\nfast\n")),
        say("admin.pool.Set.revisions_to_keep+fast dom0", ok(), b"-1"),
        say("admin.pool.Set.ephemeral_volatile+fast dom0", ok(), b"no"),
        say(
            "admin.pool.Info+fast dom0",
            ok(
                "dir_path=<HOME>/pools/fast\ndriver=qcow2\nephemeral_volatile=False\nname=fast\n"
                "revisions_to_keep=-1\nsize=<N>\nusage=<N>\n"
            ),
        ),
        say("admin.vm.CreateInPool.StandaloneVM+ dom0", ok(), b"name=alone label=blue pool=fast"),
        say("admin.pool.volume.List+fast dom0",
            ok("alone-00000007/private\nalone-00000007/root\nalone-00000007/volatile\n")),
        say("admin.pool.Remove+fast dom0",
            pool_in_use("pool 'fast' is in use by alone; change or remove that first")),
        say("admin.vm.Remove+ alone", ok()),
        say("admin.pool.Remove+fast dom0", ok()),
        say("admin.pool.List+ dom0", ok("vm-pool\nlinux-kernel\n")),
        say("admin.pool.Add+qcow2 dom0", ok(), b"name=brief\nrevisions_to_keep=2"),  # the last line does not end
        say(
            "admin.pool.Info+brief dom0",
            ok(
                "dir_path=<HOME>/pools/brief\ndriver=qcow2\nephemeral_volatile=False\nname=brief\n"
                "revisions_to_keep=2\nsize=<N>\nusage=<N>\n"
            ),
        ),
    ),
    talk(
        "refused calls about pools",
        say("admin.pool.Info+no%pe dom0", NO_POOL),
        say("admin.pool.UsageDetails+nope dom0", NO_POOL),
        say("admin.pool.volume.List+nope dom0", NO_POOL),
        say("admin.pool.Remove+nope dom0", NO_POOL),
        say("admin.pool.Set.revisions_to_keep+nope dom0", NO_POOL, b"1"),
        say("admin.pool.Set.ephemeral_volatile+nope dom0", NO_POOL, b"False"),
        say("admin.pool.Info+ dom0", EXPECTED_ARGUMENT),
        say("admin.pool.Info+vm-pool work", ONLY_DOM0),
        say("admin.pool.List+x dom0", UNEXPECTED_ARGUMENT),
        say("admin.pool.ListDrivers+ dom0", UNEXPECTED_PAYLOAD, b"x"),
        say("admin.pool.volume.Info+vm-pool dom0", protocol("no such method: 'admin.pool.volume.Info'")),
        say("admin.pool.Add+no%pe dom0", NO_DRIVER, b"name=x\n"),
        say("admin.pool.Add+qcow2 dom0", EXPECTED_PAYLOAD),
        say("admin.pool.Add+qcow2 dom0", protocol("the payload names no pool"), b"dir_path=/x\n"),
        say("admin.pool.Add+qcow2 dom0", protocol("the payload has a malformed line '50%%'"), b"name=x\n50%\n"),
        say("admin.pool.Add+qcow2 dom0", refused("dir_path '100%%' is not an absolute path"),
            b"name=x\ndir_path=100%\n"),
        say(
            "admin.pool.Add+qcow2 dom0",
            refused(
                "driver qcow2 has no option 'odd'; its options are dir_path, revisions_to_keep, ephemeral_volatile"
            ),
            b"name=x\nodd=1\n",
        ),
        say("admin.pool.Add+qcow2 dom0",
            refused("'../x' cannot be the name of a pool; use letters, digits and _ . -"), b"name=../x\n"),
        say("admin.pool.Add+qcow2 dom0",
            pool_in_use("a pool called 'vm-pool' exists already; choose another name"), b"name=vm-pool\n"),
        say(
            "admin.pool.Remove+vm-pool dom0",
            pool_in_use(
                "pool 'vm-pool' is in use by debian, fedora, work, dvm, sys-net; change or remove that first"
            ),
        ),
        say("admin.pool.Set.revisions_to_keep+vm-pool dom0",
            refused("-2 cannot be a number of revisions to keep; use -1 or more"), b"-2"),
        say("admin.pool.Set.revisions_to_keep+vm-pool dom0", no_number("50%%"), b"50%"),
        say("admin.pool.Set.revisions_to_keep+vm-pool dom0", EXPECTED_PAYLOAD),
        say("admin.pool.Set.ephemeral_volatile+vm-pool dom0", ENCRYPTED, b"True"),
        say("admin.pool.Set.ephemeral_volatile+vm-pool dom0", MAYBE, b"maybe%"),
    ),
    talk(
        "kernels",
        say("crannog.kernel.Import+6.12 dom0", ok(), b"<HOME>/kernel"),
        say("admin.pool.volume.List+linux-kernel dom0", ok("6.1.0-test\n6.12\n")),
        say("crannog.kernel.Remove+6.12 dom0", ok()),
        say("crannog.kernel.Remove+6.12 dom0",
            error("QubesException", "NotFoundError", "there is no kernel '6.12' in pool linux-kernel")),
        say(
            "crannog.kernel.Remove+6.1.0-test dom0",
            in_use(
                "kernel '6.1.0-test' is in use by global property default_kernel; choose another kernel there first"
            ),
        ),
        say("crannog.kernel.Import+6%12 dom0",
            refused("'6%%12' cannot be the name of a kernel; use letters, digits and . _ + ~ -"), b"<HOME>/kernel"),
        say("crannog.kernel.Import+6.13 dom0", protocol("the payload is not an absolute path"), b"kernel"),
        say("crannog.kernel.Import+6.13 dom0", EXPECTED_PAYLOAD),
    ),
)  # fmt: skip

VOLUMES = (
    talk(
        "volumes",
        say("admin.vm.volume.List+ dom0", ok()),
        say("admin.vm.volume.List+ far", ok()),
        say("admin.vm.volume.List+ work", ok("root\nprivate\nvolatile\nkernel\n")),
        say(
            "admin.vm.volume.Info+root work",
            ok(
                "pool=vm-pool\nvid=work-00000003/root\nsize=10737418240\nusage=<N>\nrw=True\n"
                "source=debian-00000001/root\npath=<HOME>/pools/vm-pool/work-00000003/root.volatile.qcow2\n"
                "save_on_stop=False\nsnap_on_start=True\nrevisions_to_keep=0\nephemeral=False\nis_outdated=False\n"
            ),
        ),
        say("admin.vm.volume.Info+private work", ok(PRIVATE.format(size=2147483648, rw=True))),
        say(
            "admin.vm.volume.Info+root debian",
            ok(
                "pool=vm-pool\nvid=debian-00000001/root\nsize=1048576\nusage=<N>\nrw=True\nsource=\n"
                "path=<HOME>/pools/vm-pool/debian-00000001/root.dirty.qcow2\n"
                "save_on_stop=True\nsnap_on_start=False\nrevisions_to_keep=1\nephemeral=False\n"
            ),
        ),
        say(
            "admin.vm.volume.Info+volatile work",
            ok(
                "pool=vm-pool\nvid=work-00000003/volatile\nsize=10737418240\nusage=<N>\nrw=True\nsource=\n"
                "path=<HOME>/pools/vm-pool/work-00000003/volatile.img\n"
                "save_on_stop=False\nsnap_on_start=False\nrevisions_to_keep=0\nephemeral=False\n"
            ),
        ),
        say("admin.vm.volume.Info+kernel work", ok(HOSTS.format(vid="6.1.0-test", size=0, path=""))),
        say("crannog.kernel.Import+6.12 dom0", ok(), b"<HOME>/kernel"),
        say("admin.vm.property.Set+kernel work", ok(), b"6.12"),
        say("admin.vm.volume.Info+kernel work", ok(HOSTS.format(vid="6.12", size=0, path=""))),
        say("admin.vm.property.Set+kernel work", ok(), b""),
        say("admin.vm.volume.Info+kernel work", ok(HOSTS.format(vid="", size=0, path=""))),
        say("admin.vm.volume.Resize+volatile work", ok(), b"20000000512"),
        say("admin.vm.volume.Resize+private work", ok(), b"3000000512"),
        say("admin.vm.volume.Set.rw+private work", ok(), b"False"),
        say("admin.vm.volume.Set.ephemeral+private work", ok(), b"False"),
        say("admin.vm.volume.Set.revisions_to_keep+private work", ok(), b"0"),
        say("admin.vm.volume.Info+private work", ok(PRIVATE.format(size=3000000512, rw=False))),
        say("admin.vm.volume.Clear+private work", ok()),
    ),
    talk(
        "revisions",
        say("admin.vm.volume.ListSnapshots+root debian", ok()),
        say("crannog.vm.volume.ImportFile+root debian", ok(), b"<HOME>/image"),
        say("admin.vm.volume.ListSnapshots+root debian", ok("<REVISION>\n")),
        say("admin.vm.volume.Revert+root debian", ok(), b"<REVISION>"),
        say("admin.vm.volume.Revert+root debian", NO_REVISION, b"nope"),
        say("admin.vm.volume.Revert+root debian", protocol("the payload is not the name of a revision"), b"a/b"),
        say("admin.vm.volume.Revert+root debian", EXPECTED_PAYLOAD),
        say("admin.vm.volume.ListSnapshots+root work", ok()),
    ),
    talk(
        "copies",
        say("admin.vm.volume.CloneFrom+private fedora", ok("<TOKEN>")),
        say("admin.vm.volume.CloneTo+private work", ok(), b"<TOKEN>"),
        say("admin.vm.volume.CloneTo+private work", NO_TOKEN, b"<TOKEN>"),
        say("admin.vm.volume.CloneTo+private work", protocol("the payload is not a token"), b"50%"),
        say("admin.vm.volume.CloneTo+private work", EXPECTED_PAYLOAD),
        say("admin.vm.volume.CloneFrom+private work", UNEXPECTED_PAYLOAD, b"x"),
    ),
    talk(
        "volumes that are not there",
        say("admin.vm.volume.Info+o%d work", NO_VOLUME),
        say("admin.vm.volume.Info+root dom0", denied("Argument not in 'dom0 volumes'")),
        say("admin.vm.volume.Info+root nobody", absent("nobody")),
        say("admin.vm.volume.Info+ work", EXPECTED_ARGUMENT),
        say("admin.vm.volume.List+x work", UNEXPECTED_ARGUMENT),
        say("admin.vm.volume.ListSnapshots+odd work", NO_VOLUME),
        say("admin.vm.volume.Revert+odd work", NO_VOLUME, b"x"),
        say("admin.vm.volume.CloneFrom+odd work", NO_VOLUME),
        say("admin.vm.volume.CloneTo+odd work", NO_VOLUME, b"0" * 32),
        say("admin.vm.volume.Resize+odd work", NO_VOLUME, b"1"),
        say("admin.vm.volume.Clear+odd work", NO_VOLUME),
        say("admin.vm.volume.Set.revisions_to_keep+odd work", NO_VOLUME, b"1"),
        say("admin.vm.volume.Set.rw+odd work", NO_VOLUME, b"True"),
        say("admin.vm.volume.Set.ephemeral+odd work", NO_VOLUME, b"False"),
        say("crannog.vm.volume.ImportFile+odd work", NO_VOLUME, b"<HOME>/image"),
        say("internal.vm.volume.ImportBegin+odd work", NO_VOLUME),
        say("internal.vm.volume.ImportEnd+odd work", NO_VOLUME, b"ok"),
        say("admin.vm.volume.Snapshot+private work", protocol("no such method: 'admin.vm.volume.Snapshot'")),
    ),
    talk(
        "refused changes of volumes",
        say(
            "admin.vm.volume.Resize+private work",
            refused(
                "volume private of work has 2147483648 bytes and cannot get fewer, as what is behind them would be "
                "lost; by hand: make its file system smaller in the VM, copy the volume's beginning to a file, and "
                "import that with 'qvm-volume import'"
            ),
            b"1",
        ),
        say("admin.vm.volume.Resize+private work",
            refused("a volume cannot have 9999999999999999999 bytes; use 1 to 2251799813685248"),
            b"9999999999999999999"),
        say("admin.vm.volume.Resize+private work", no_number("50%%"), b"50%"),
        say("admin.vm.volume.Resize+private work", no_number("07"), b"07"),
        say("admin.vm.volume.Resize+private work", no_number("-1"), b"-1"),
        say("admin.vm.volume.Resize+private work", no_number("99999999999999999999"), b"99999999999999999999"),
        say("admin.vm.volume.Set.revisions_to_keep+private work", no_number("x"), b"x"),
        say("admin.vm.volume.Set.revisions_to_keep+private work",
            refused("-5 cannot be a number of revisions to keep; use -1 or more"), b"-5"),
        say("admin.vm.volume.Set.rw+private work", MAYBE, b"maybe%"),
        say("admin.vm.volume.Set.ephemeral+private work", ENCRYPTED, b"True"),
        say("admin.vm.volume.Clear+root work", layer("be cleared")),
        say("crannog.vm.volume.ImportFile+root work", layer("get another image"), b"<HOME>/image"),
        say("crannog.vm.volume.ImportFile+root debian", protocol("the payload is not an absolute path"), b"image"),
        say(
            "crannog.vm.volume.ImportFile+root debian",
            error(
                "StoragePoolException",
                "StorageError",
                "image /no%%pe cannot be imported into volume debian-00000001/root: No such file or directory",
            ),
            b"/no%pe",
        ),
    ),
    talk(
        "refused changes of volumes that nobody gives content to",
        say("admin.vm.volume.Clear+kernel work", hosts("cannot be cleared")),
        say("admin.vm.volume.Resize+kernel work", hosts("cannot be changed"), b"3000000000"),
        say("admin.vm.volume.Set.rw+kernel work", hosts("cannot be changed"), b"True"),
        say("admin.vm.volume.Set.revisions_to_keep+kernel work", hosts("keeps no revisions"), b"1"),
        say("admin.vm.volume.Set.ephemeral+kernel work", ENCRYPTED, b"True"),
        say("crannog.vm.volume.ImportFile+kernel work", hosts("cannot get another image"), b"<HOME>/image"),
        say("internal.vm.volume.ImportBegin+kernel work", hosts("cannot get another image")),
        say("admin.vm.volume.CloneFrom+kernel work", nothing_to_copy("kernel")),
        say("crannog.vm.volume.Export+kernel work", nothing_to_export("kernel")),
        say("crannog.vm.volume.Locate+kernel work", nothing_to_export("kernel")),
        say("crannog.vm.volume.Accept+kernel work",
            refused("volume kernel of work has no images of its own that could be accepted")),
        say("admin.vm.volume.Clear+volatile work", empty("cannot be cleared")),
        say("admin.vm.volume.Set.revisions_to_keep+volatile work", empty("keeps no revisions"), b"1"),
        say("admin.vm.volume.Set.ephemeral+volatile work", ENCRYPTED, b"True"),
        say("crannog.vm.volume.ImportFile+volatile work", empty("cannot get another image"), b"<HOME>/image"),
        say("internal.vm.volume.ImportBegin+volatile work", empty("cannot get another image")),
        say("admin.vm.volume.CloneFrom+volatile work", nothing_to_copy("volatile")),
        say("crannog.vm.volume.Export+volatile work", nothing_to_export("volatile")),
        say("crannog.vm.volume.Locate+volatile work", nothing_to_export("volatile")),
        say("crannog.vm.volume.Accept+volatile work",
            refused("volume volatile of work has no images of its own that could be accepted")),
        say("admin.vm.volume.CloneFrom+private fedora", ok("<TOKEN>")),
        say("admin.vm.volume.CloneTo+volatile work", empty("cannot get other content"), b"<TOKEN>"),
        say("admin.vm.volume.CloneFrom+private fedora", ok("<TOKEN>")),
        say("admin.vm.volume.CloneTo+kernel work", hosts("cannot get other content"), b"<TOKEN>"),
    ),
    talk(
        "where content is",
        say("crannog.vm.volume.Locate+private work", ok("raw <HOME>/pools/vm-pool/work-00000003/private.img")),
        say("crannog.vm.volume.Locate+root work", ok("raw <HOME>/pools/vm-pool/debian-00000001/root.2.img")),
        say("crannog.vm.volume.Locate+odd work", NO_VOLUME),
        say("crannog.vm.volume.Locate+ work", EXPECTED_ARGUMENT),
        say("crannog.vm.volume.Locate+private work", UNEXPECTED_PAYLOAD, b"x"),
        say("crannog.vm.volume.Export+odd work", NO_VOLUME),
        say("admin.vm.Start+ work", ok()),
        say("crannog.vm.volume.Locate+private work", runs("have its volume private copied")),
        say("crannog.vm.volume.Export+private work", runs("have its volume private copied")),
    ),
    talk(
        "volumes of a VM that runs",
        say("admin.vm.volume.CloneFrom+private fedora", ok("<TOKEN>")),
        say("admin.vm.Start+ work", ok()),
        say("admin.vm.volume.Resize+root work", runs("get a volume of another size"), b"30000000000"),
        say("admin.vm.volume.Resize+volatile work", runs("get a volume of another size"), b"30000000000"),
        say("admin.vm.volume.Set.rw+private work", runs("get a volume with other rights"), b"False"),
        say("admin.vm.volume.Clear+private work", runs("be cleared")),
        say("admin.vm.volume.CloneTo+private work", runs("get other content"), b"<TOKEN>"),
        say("crannog.vm.volume.ImportFile+private work", runs("get another image"), b"<HOME>/image"),
        say("internal.vm.volume.ImportBegin+private work", runs("get another image")),
    ),
    talk(
        "imports by another program",
        say("admin.vm.volume.Import+private work", takes_stream("admin.vm.volume.Import"), b"x"),
        say("admin.vm.volume.ImportWithSize+private work", takes_stream("admin.vm.volume.ImportWithSize"), b"1\nx"),
        say("internal.vm.volume.ImportEnd+private work",
            refused("no import into volume private of work was begun"), b"ok"),
        say("internal.vm.volume.ImportBegin+private work",
            ok("1048576 <HOME>/pools/vm-pool/work-00000003/private.import.new"), b"1048576"),
        say(
            "admin.vm.Start+ work",
            error(
                "QubesVMError",
                "StateError",
                "work cannot be started: an import into its volume private goes on; wait until it is over, or give "
                "it up with 'crannog daemon stop'",
            ),
        ),
        say("internal.vm.volume.ImportEnd+private work", ok(), b"ok"),
        say("internal.vm.volume.ImportBegin+private work",
            ok("1048576 <HOME>/pools/vm-pool/work-00000003/private.import.new")),
        say("internal.vm.volume.ImportEnd+private work",
            protocol("the payload is neither 'ok' nor 'fail' with a reason"), b"maybe"),
        say("internal.vm.volume.ImportEnd+private work",
            error("QubesException", "CrannogError", "Data import failed: no 50%% room"), b"fail\nno 50% room"),
        say("internal.vm.volume.ImportBegin+private work", no_number("-1"), b"-1"),
        say("internal.vm.volume.ImportEnd+private work", EXPECTED_PAYLOAD),
    ),
)  # fmt: skip

OTHERS = (
    talk(
        "what policy needs to know",
        say("admin.vm.Remove+ work", ok()),
        say("admin.vm.Remove+ dvm", ok()),
        say("admin.vm.Remove+ fedora", ok()),
        say("admin.vm.Remove+ far", ok()),
        say("admin.vm.Remove+ sys-net", ok()),
        say(
            "internal.GetSystemInfo+ dom0",
            ok(
                '{"domains": {"dom0": {"internal": null, "tags": [], "type": "AdminVM", '
                '"template_for_dispvms": false, "default_dispvm": null, "icon": "adminvm-black", '
                '"label": "0x000000", "guivm": null, "relayvm": null, "transport_rpc": null, '
                '"power_state": "Running", "uuid": "00000000-0000-0000-0000-000000000000"}, '
                '"debian": {"internal": null, "tags": ["audiovm-dom0", "created-by-dom0", "guivm-dom0"], '
                '"type": "TemplateVM", "template_for_dispvms": false, "default_dispvm": null, '
                '"icon": "templatevm-black", "label": "0x000000", "guivm": "dom0", "relayvm": null, '
                '"transport_rpc": null, "power_state": "Halted", '
                '"uuid": "00000001-0000-4000-8000-000000000000"}}}'
            ),
        ),
        say("internal.GetSystemInfo+ debian", ONLY_DOM0),
        say("internal.GetSystemInfo+x dom0", UNEXPECTED_ARGUMENT),
    ),
    talk(
        "the host's sleep",
        say("internal.SuspendPre+ dom0", not_yet("internal.SuspendPre is not served by this version of Crannog")),
        say("internal.SuspendPost+ dom0", not_yet("internal.SuspendPost is not served by this version of Crannog")),
        say("internal.SuspendPre+ work", ONLY_DOM0),
    ),
    talk(
        "services of guests",
        say("qubes.NotifyUpdates+ work name dom0", ok(), b" 3\n"),
        say("admin.vm.feature.Get+updates-available work", no_updates("work")),
        say("admin.vm.feature.Get+updates-available debian", ok("1")),
        say("qubes.NotifyUpdates+ work name dom0", ok(), b"0"),
        say("admin.vm.feature.Get+updates-available debian", ok("1")),
        say("qubes.NotifyUpdates+ debian name dom0", ok(), b"0"),
        say("admin.vm.feature.Get+updates-available debian", ok()),
        say("admin.vm.Start+ debian", ok()),
        say("qubes.NotifyUpdates+ work name dom0", ok(), b"3"),
        say("admin.vm.feature.Get+updates-available debian", ok()),
        say("qubes.NotifyUpdates+ sys-net name dom0", ok(), b"3"),
        say("admin.vm.feature.Get+updates-available sys-net", ok("1")),
        say("qubes.NotifyUpdates+ sys-net name dom0", ok(), b"0"),
        say("admin.vm.feature.Get+updates-available sys-net", ok()),
        say("qubes.NotifyUpdates+ work name dom0", protocol("the payload is not a number of updates"), b"50%"),
        say("qubes.NotifyUpdates+ work name dom0", EXPECTED_PAYLOAD),
        say("qubes.NotifyUpdates+ work name work", ONLY_DOM0, b"0"),
        say("qubes.NotifyTools+ dvm name dom0", ok()),
        say("admin.vm.property.Get+default_user dvm", ok("default=False type=str ann")),
        say(
            "qubes.NotifyTools+ work name dom0",
            error(
                "QubesVMNotRunningError",
                "VMNotRunningError",
                "the tools in work cannot be heard: its agent is not connected",
            ),
        ),
        say("qubes.NotifyTools+ dom0 name dom0", elsewhere("dom0", "AdminVM")),
        say("qubes.FeaturesRequest+ work name dom0",
            error("QubesVMNotRunningError", "VMNotRunningError",
                  "work has no guest DB: it is not running; start it with 'qvm-start work'")),
        say("qubes.FeaturesRequest+x work name dom0", UNEXPECTED_ARGUMENT),
        say("qubes.FeaturesRequest+ debian name dom0", ok()),
    ),
    talk(
        "backups",
        say("admin.backup.Info+daily dom0", not_yet("admin.backup.Info is not served by this version of Crannog")),
        say("admin.backup.Execute+daily dom0",
            not_yet("admin.backup.Execute is not served by this version of Crannog")),
        say("admin.backup.Cancel+daily dom0",
            not_yet("admin.backup.Cancel is not served by this version of Crannog")),
        say("admin.backup.Info+ dom0", EXPECTED_ARGUMENT),
        say("admin.backup.Info+daily work", ONLY_DOM0),
    ),
    talk(
        "upkeep",
        say("crannog.pool.Check+vm-pool dom0", ok('{"found": [], "remarks": []}')),
        say("crannog.pool.FindWaste+vm-pool dom0", ok('{"found": [], "remarks": []}')),
        say("crannog.pool.Collect+vm-pool dom0", ok('{"found": [], "remarks": []}')),
        say("crannog.vm.volume.Accept+private work", ok()),
        say("crannog.pool.Usage+vm-pool dom0",
            ok("driver=qcow2\nsize=<N>\nused=<N>\nvolumes=15\nvirtual=<N>\nreal=<N>\n")),
        say("crannog.pool.Usage+linux-kernel dom0",
            ok("driver=linux-kernel\nsize=<N>\nused=<N>\nvolumes=1\n")),
        say("crannog.pool.Usage+ dom0", EXPECTED_ARGUMENT),
        say("crannog.pool.Usage+vm-pool dom0", UNEXPECTED_PAYLOAD, b"x"),
        say("crannog.pool.Usage+vm-pool work", ONLY_DOM0),
        say(
            "crannog.pool.Usage+no%pe dom0",
            error("QubesException", "NotFoundError", "there is no pool 'no%%pe'; 'qvm-pool list' lists the pools"),
        ),
        say("crannog.pool.Check+vm-pool work", ONLY_DOM0),
        say(
            "crannog.pool.Check+nowhere dom0",
            error("QubesException", "NotFoundError", "there is no pool 'nowhere'; 'qvm-pool list' lists the pools"),
        ),
    ),
    talk(
        "the host",
        say("crannog.Capabilities+ dom0", ok("accel=tcg\nhvm=True\nemulator=/usr/bin/qemu-system-x86_64\n")),
        say("crannog.Diagnose+ dom0",
            ok("everything here is a stand-in\nVMs are not shown: this host keeps what would be shown.\n")),
        say("crannog.Diagnose+ work", ONLY_DOM0),
    ),
)  # fmt: skip

TALKS = (*POOLS, *VOLUMES, *OTHERS)


@pytest.mark.parametrize("spoken", TALKS, ids=str)
async def test_exact_replies(spoken: Talk) -> None:
    await check(spoken)
