"""Exact bytes of the methods about VMs: lists, properties, features, tags, labels, notes, creation, removal, power."""

import pytest

from tests.unit.bytes_world import (
    EXPECTED_ARGUMENT,
    EXPECTED_PAYLOAD,
    NOT_DOM0,
    ONLY_DOM0,
    UNEXPECTED_ARGUMENT,
    UNEXPECTED_PAYLOAD,
    Talk,
    absent,
    check,
    denied,
    elsewhere,
    error,
    exists,
    in_use,
    ok,
    protocol,
    refused,
    refused_property,
    runs,
    say,
    talk,
)

ALL_LABELS = "red, orange, yellow, green, gray, blue, purple, black"
WORK = "work class=AppVM state={} uuid=00000003-0000-4000-8000-000000000000\n"
FOREIGN_PROPERTY = "the properties are listed by the command without a name"
NO_FEATURE = error("QubesFeatureNotFoundError", "FeatureNotFoundError", "work has no feature 'no%%pe'")
FEATURE_NAME = protocol("the name of a feature holds letters, digits and . _ - only, at most 255 of them")
FEATURE_VALUE = protocol("the value of a feature must be printable ASCII of at most 65536 characters")
GUARDED = denied("feature 'preload-dispvm' is kept by the system and cannot be changed by hand")
TAG_NAME = error(
    "QubesInvalidTagError", "TagRefusedError", "a tag holds letters, digits, _ and - only, at most 255 of them"
)
LABEL_NAME = error(
    "QubesInvalidLabelError",
    "LabelRefusedError",
    "'p%%nk' cannot be the name of a label: use letters, digits and . _ -, at most 64 of them",
)
COLOR = error("QubesInvalidLabelValueError", "ColorRefusedError", "'pink' is not a colour; write it as 0xRRGGBB")
TWO_KINDS_OF_POOLS = protocol("the payload has 'pool=' and 'pool:VOLUME=', which exclude each other")


def no_property(holder: str, name: str) -> bytes:
    message = f"{holder} has no property '{name}'; {FOREIGN_PROPERTY}"
    return error("QubesNoSuchPropertyError", "PropertyNotFoundError", message)


def no_label(name: str, known: str = ALL_LABELS) -> bytes:
    message = f"there is no label '{name}'; use one of {known}"
    return error("QubesLabelNotFoundError", "LabelNotFoundError", message)


def not_running(message: str) -> bytes:
    return error("QubesVMNotRunningError", "VMNotRunningError", message)


HALTED = not_running("work is not running; start it with 'qvm-start work'")

LISTS = (
    talk(
        "classes",
        say("admin.vmclass.List+ dom0", ok("AdminVM\nAppVM\nDispVM\nRemoteVM\nStandaloneVM\nTemplateVM\n")),
        say("admin.vmclass.List+ work", ONLY_DOM0),
        say("admin.vmclass.List+x dom0", UNEXPECTED_ARGUMENT),
        say("admin.vmclass.List+ dom0", UNEXPECTED_PAYLOAD, b"x"),
    ),
    talk(
        "VMs",
        say(
            "admin.vm.List+ dom0",
            ok(
                "dom0 class=AdminVM state=Running uuid=00000000-0000-0000-0000-000000000000\n"
                "debian class=TemplateVM state=Halted uuid=00000001-0000-4000-8000-000000000000\n"
                "dvm class=AppVM state=Halted uuid=00000004-0000-4000-8000-000000000000\n"
                "far class=RemoteVM state=Running uuid=00000006-0000-4000-8000-000000000000\n"
                "fedora class=TemplateVM state=Halted uuid=00000002-0000-4000-8000-000000000000\n"
                "sys-net class=StandaloneVM state=Halted uuid=00000005-0000-4000-8000-000000000000\n"
                "work class=AppVM state=Halted uuid=00000003-0000-4000-8000-000000000000\n"
            ),
        ),
        say("admin.vm.List+ work", ok(WORK.format("Halted"))),
        say("admin.vm.List work", ok(WORK.format("Halted"))),
        say("admin.vm.List+ dom0 name uuid:00000003-0000-4000-8000-000000000000", ok(WORK.format("Halted"))),
        say(
            "admin.vm.List+ work keyword adminvm",  # a VM that policy lets see nothing
            ok(),
        ),
        say("admin.vm.List+ nobody", absent("nobody")),
        say("admin.vm.List+ nobody name dom0", absent("nobody")),
        say(
            "admin.vm.List+ uuid:00000003",
            error("QubesVMInvalidUUIDError", "UUIDRefusedError", "'00000003' is not the UUID of a VM"),
        ),
        say("admin.vm.List+ uuid:00000099-0000-4000-8000-000000000000",
            absent("uuid:00000099-0000-4000-8000-000000000000")),
        say("admin.vm.List+x dom0", UNEXPECTED_ARGUMENT),
        say("admin.vm.List+ dom0", UNEXPECTED_PAYLOAD, b"x"),
    ),
    talk(
        "a table",
        say(
            "crannog.vm.Table+name+state+netvm+features.x+tags dom0",
            ok(
                "dom0\tRunning\t-\t-\t\n"
                "debian\tHalted\t\t-\taudiovm-dom0 created-by-dom0 guivm-dom0\n"
                "dvm\tHalted\t\t-\taudiovm-dom0 created-by-dom0 guivm-dom0\n"
                "far\tRunning\t-\t-\tcreated-by-dom0\n"
                "fedora\tHalted\t\t-\taudiovm-dom0 created-by-dom0 guivm-dom0\n"
                "sys-net\tHalted\t\t-\taudiovm-dom0 created-by-dom0 guivm-dom0\n"
                "work\tHalted\tsys-net\t-\taudiovm-dom0 created-by-dom0 guivm-dom0\n"
            ),
        ),
        say("crannog.vm.Table+name work", ok("work\n")),
        say("crannog.vm.Table+ dom0", EXPECTED_ARGUMENT),
    ),
)  # fmt: skip

PROPERTIES = (
    talk(
        "global properties",
        say(
            "admin.property.List+ dom0",
            ok(
                "check_updates_vm\nclockvm\ndefault_audiovm\ndefault_dispvm\ndefault_guivm\ndefault_kernel\n"
                "default_netvm\ndefault_pool\ndefault_pool_kernel\ndefault_pool_private\ndefault_pool_root\n"
                "default_pool_volatile\ndefault_qrexec_timeout\ndefault_shutdown_timeout\ndefault_template\n"
                "management_dispvm\nmaxmem\nno_cpus\nstats_interval\nupdatevm\n"
            ),
        ),
        say(
            "admin.property.GetAll+ dom0",
            ok(
                "check_updates_vm default=True type=bool True\n"
                "clockvm default=True type=vm \n"
                "default_audiovm default=True type=vm dom0\n"
                "default_dispvm default=True type=vm \n"
                "default_guivm default=True type=vm dom0\n"
                "default_kernel default=False type=str 6.1.0-test\n"
                "default_netvm default=True type=vm \n"
                "default_pool default=True type=str vm-pool\n"
                "default_pool_kernel default=True type=str linux-kernel\n"
                "default_pool_private default=True type=str vm-pool\n"
                "default_pool_root default=True type=str vm-pool\n"
                "default_pool_volatile default=True type=str vm-pool\n"
                "default_qrexec_timeout default=True type=int 60\n"
                "default_shutdown_timeout default=True type=int 60\n"
                "default_template default=True type=vm \n"
                "management_dispvm default=True type=vm \n"
                "maxmem default=True type=int 0\n"
                "no_cpus default=True type=int 0\n"
                "stats_interval default=True type=int 3\n"
                "updatevm default=True type=vm \n"
            ),
        ),
        say("admin.property.Get+stats_interval dom0", ok("default=True type=int 3")),
        say("admin.property.Set+stats_interval dom0", ok(), b"5"),
        say("admin.property.Get+stats_interval dom0", ok("default=False type=int 5")),
        say("admin.property.GetDefault+stats_interval dom0", ok("type=int 3")),
        say("admin.property.Reset+stats_interval dom0", ok()),
        say("admin.property.Get+stats_interval dom0", ok("default=True type=int 3")),
        say("admin.property.Help+stats_interval dom0", ok("Seconds between two statistics of a VM.")),
        say("admin.property.Set+default_netvm dom0", ok(), b"sys-net"),
        say("admin.property.Get+default_netvm dom0", ok("default=False type=vm sys-net")),
        say("admin.property.Set+default_netvm dom0", ok()),
        say("admin.property.Get+default_netvm dom0", ok("default=False type=vm ")),
    ),
    talk(
        "refused global properties",
        say("admin.property.Get+memory dom0", no_property("dom0", "memory")),
        say("admin.property.Get+clockvm work", ONLY_DOM0),
        say("admin.property.Get+ dom0", EXPECTED_ARGUMENT),
        say("admin.property.List+x dom0", UNEXPECTED_ARGUMENT),
        say("admin.property.Help+no%pe dom0", no_property("dom0", "no%%pe")),
        say("admin.property.Reset+no%pe dom0", no_property("dom0", "no%%pe")),
        say("admin.property.GetDefault+no%pe dom0", no_property("dom0", "no%%pe")),
        say(
            "admin.property.Set+stats_interval dom0",
            refused_property("'stats_interval' of dom0 was not set: 0 is out of range: 1 to 86400 seconds"),
            b"0",
        ),
        say("admin.property.Set+maxmem dom0", refused_property("'maxmem' of dom0 is read-only"), b"5"),
        say("admin.property.Reset+maxmem dom0", refused_property("'maxmem' of dom0 has no default to go back to")),
        say("admin.property.Set+clockvm dom0", absent("nobody"), b"nobody"),
        say("admin.property.HelpRst+clockvm dom0", protocol("no such method: 'admin.property.HelpRst'")),
        say("admin.property.Reset+clockvm dom0", UNEXPECTED_PAYLOAD, b"x"),
    ),
    talk(
        "properties of dom0 and of a RemoteVM",
        say(
            "admin.vm.property.GetAll+ dom0",
            ok(
                "devices_denied default=True type=str \n"
                "icon default=True type=str adminvm-black\n"
                "include_in_backups default=True type=bool True\n"
                "keyboard_layout default=True type=str us++\n"
                "klass default=True type=str AdminVM\n"
                "label default=True type=label black\n"
                "maxmem default=True type=int 0\n"
                "name default=False type=str dom0\n"
                "qid default=False type=int 0\n"
                "updateable default=True type=bool True\n"
                "uuid default=False type=str 00000000-0000-0000-0000-000000000000\n"
                "vcpus default=True type=int 0\n"
                "default_dispvm default=True type=vm \n"
            ),
        ),
        say("admin.vm.property.Get+qid dom0", ok("default=False type=int 0")),
        say(
            "admin.vm.property.GetAll+ far",
            ok(
                "icon default=True type=str remotevm-gray\n"
                "include_in_backups default=True type=bool True\n"
                "klass default=True type=str RemoteVM\n"
                "label default=False type=label gray\n"
                "name default=False type=str far\n"
                "qid default=False type=int 6\n"
                "remote_name default=True type=str \n"
                "transport_rpc default=True type=str \n"
                "uuid default=False type=str 00000006-0000-4000-8000-000000000000\n"
                "relayvm default=True type=vm \n"
            ),
        ),
    ),
    talk(
        "properties of an AppVM",
        say(
            "admin.vm.property.GetAll+ work",
            ok(
                "autostart default=True type=bool False\n"
                "backup_timestamp default=True type=int \n"
                "debug default=True type=bool False\n"
                "default_user default=True type=str user\n"
                "devices_denied default=True type=str \n"
                "dns default=True type=str 10.139.1.1 10.139.1.2\n"
                "gateway default=True type=str \n"
                "gateway6 default=True type=str \n"
                "icon default=True type=str appvm-green\n"
                "include_in_backups default=True type=bool True\n"
                "installed_by_rpm default=True type=bool False\n"
                "ip default=True type=str 10.137.0.3\n"
                "ip6 default=True type=str \n"
                "kernel default=True type=str 6.1.0-test\n"
                "keyboard_layout default=True type=str us++\n"
                "klass default=True type=str AppVM\n"
                "label default=False type=label green\n"
                "mac default=True type=str 00:16:3e:5e:6c:00\n"
                "maxmem default=True type=int 4000\n"
                "memory default=True type=int 400\n"
                "name default=False type=str work\n"
                "provides_network default=True type=bool False\n"
                "qid default=False type=int 3\n"
                "qrexec_timeout default=True type=int 60\n"
                "shutdown_timeout default=True type=int 60\n"
                "start_time default=True type=str \n"
                "stubdom_mem default=True type=int \n"
                "stubdom_uuid default=True type=str \n"
                "stubdom_xid default=True type=int -1\n"
                "template_for_dispvms default=True type=bool False\n"
                "updateable default=True type=bool False\n"
                "uuid default=False type=str 00000003-0000-4000-8000-000000000000\n"
                "vcpus default=True type=int 2\n"
                "virt_mode default=True type=str pvh\n"
                "visible_gateway default=True type=str 10.137.0.5\n"
                "visible_gateway6 default=True type=str \n"
                "visible_ip default=True type=str 10.137.0.3\n"
                "visible_ip6 default=True type=str \n"
                "visible_netmask default=True type=str 255.255.255.255\n"
                "xid default=True type=int -1\n"
                "audiovm default=True type=vm dom0\n"
                "bootmode default=True type=str default\n"
                "default_dispvm default=True type=vm \n"
                "guivm default=True type=vm dom0\n"
                "kernelopts default=True type=str \n"
                "management_dispvm default=True type=vm \n"
                "netvm default=False type=vm sys-net\n"
                "template default=False type=vm debian\n"
            ),
        ),
        say(
            "admin.vm.property.List+ work",
            ok(
                "autostart\nbackup_timestamp\ndebug\ndefault_user\ndevices_denied\ndns\ngateway\ngateway6\nicon\n"
                "include_in_backups\ninstalled_by_rpm\nip\nip6\nkernel\nkeyboard_layout\nklass\nlabel\nmac\nmaxmem\n"
                "memory\nname\nprovides_network\nqid\nqrexec_timeout\nshutdown_timeout\nstart_time\nstubdom_mem\n"
                "stubdom_uuid\nstubdom_xid\ntemplate_for_dispvms\nupdateable\nuuid\nvcpus\nvirt_mode\n"
                "visible_gateway\nvisible_gateway6\nvisible_ip\nvisible_ip6\nvisible_netmask\nxid\naudiovm\n"
                "bootmode\ndefault_dispvm\nguivm\nkernelopts\nmanagement_dispvm\nnetvm\ntemplate\n"
            ),
        ),
        say("admin.vm.property.Help+memory work", ok("Memory at start, in MiB.")),
        say("admin.vm.property.GetDefault+memory work", ok("type=int 400")),
        say("admin.vm.property.GetDefault+debug work", ok("type=bool False")),
        say("admin.vm.property.GetDefault+guivm work", ok("type=vm dom0")),
        say("admin.vm.property.GetDefault+netvm work", ok("type=vm ")),
        say("admin.vm.property.GetDefault+name work", ok()),
        say("admin.vm.property.GetDefault+template work", ok()),
    ),
    talk(
        "other values",
        say("admin.vm.property.Set+memory work", ok(), b"640"),
        say("admin.vm.property.Get+memory work", ok("default=False type=int 640")),
        say("admin.vm.property.Reset+memory work", ok()),
        say("admin.vm.property.Get+memory work", ok("default=True type=int 400")),
        say("admin.vm.property.Set+debug work", ok(), b"YES"),
        say("admin.vm.property.Get+debug work", ok("default=False type=bool True")),
        say("admin.vm.property.Set+debug work", ok(), b"oFF"),
        say("admin.vm.property.Get+debug work", ok("default=False type=bool False")),
        say("admin.vm.property.Set+label work", ok(), b"blue"),
        say("admin.vm.property.Get+label work", ok("default=False type=label blue")),
        say("admin.vm.property.Get+icon work", ok("default=True type=str appvm-blue")),
        say("admin.vm.property.Set+netvm work", ok()),
        say("admin.vm.property.Get+netvm work", ok("default=False type=vm ")),
        say("admin.vm.property.Get+ip work", ok("default=True type=str ")),
        say("admin.vm.property.Set+default_user work", ok()),
        say("admin.vm.property.Get+default_user work", ok("default=False type=str ")),
        say("admin.vm.property.Set+kernelopts work", ok(), b"50% a\\nb  c"),
        say("admin.vm.property.Get+kernelopts work", ok("default=False type=str 50% a\\nb  c")),
        say("admin.vm.property.Set+name work", ok(), b"desk"),
        say("admin.vm.property.Get+name desk", ok("default=False type=str desk")),
        say("admin.vm.property.Get+name work", absent("work")),
        say("admin.vm.property.Get+klass desk", ok("default=True type=str AppVM")),
    ),
    talk(
        "values of a VM that runs",
        say("admin.vm.property.Set+netvm work", ok(), b""),
        say("admin.vm.Start+ work", ok()),
        say("admin.vm.property.Get+xid work", ok("default=True type=int 1")),
        say("admin.vm.property.Set+name work", runs("get another name"), b"desk"),
        say("admin.vm.property.Set+template work", runs("get another template"), b"fedora"),
        say("admin.vm.property.Reset+kernel work", runs("get another kernel")),
        say("admin.vm.property.Set+label work", ok(), b"red"),
    ),
    talk(
        "refused values",
        say("admin.vm.property.Get+no%pe work", no_property("work", "no%%pe")),
        say("admin.vm.property.Get+memory dom0", no_property("dom0", "memory")),
        say("admin.vm.property.Get+memory far", no_property("far", "memory")),
        say("admin.vm.property.GetDefault+nope work", no_property("work", "nope")),
        say("admin.vm.property.Help+nope work", no_property("work", "nope")),
        say("admin.vm.property.Set+nope work", no_property("work", "nope"), b"x"),
        say("admin.vm.property.Reset+nope work", no_property("work", "nope")),
        say("admin.vm.property.Get+memory nobody", absent("nobody")),
        say("admin.vm.property.Get+ work", EXPECTED_ARGUMENT),
        say("admin.vm.property.GetAll+x work", UNEXPECTED_ARGUMENT),
        say("admin.vm.property.Get+memory work", UNEXPECTED_PAYLOAD, b"x"),
        say(
            "admin.vm.property.Set+memory work",
            refused_property("'memory' of work was not set: '50%%' is not a whole number"),
            b"50%",
        ),
        say(
            "admin.vm.property.Set+memory work",
            refused_property("'memory' of work was not set: '' is not a whole number"),
        ),
        say(
            "admin.vm.property.Set+memory work",
            refused_property("'memory' of work was not set: 1 is out of range: 64 to 16777216 MiB"),
            b"1",
        ),
        say(
            "admin.vm.property.Set+debug work",
            refused_property("'debug' of work was not set: 'perhaps' is neither True nor False"),
            b"perhaps",
        ),
        say(
            "admin.vm.property.Set+kernelopts work",
            refused_property("'kernelopts' of work was not set: the value must be printable ASCII"),
            b"a\nb",
        ),
        say("admin.vm.property.Set+kernelopts work", protocol("the payload is not ASCII"), b"\xc3\xb6"),
        say("admin.vm.property.Set+uuid work", refused_property("'uuid' of work is read-only"), b"x"),
        say("admin.vm.property.Reset+uuid work", refused_property("'uuid' of work has no default to go back to")),
        say("admin.vm.property.Reset+name work", refused_property("'name' of work has no default to go back to")),
        say("admin.vm.property.Set+label work", no_label("pink"), b"pink"),
        say("admin.vm.property.Set+netvm work", absent("nobody"), b"nobody"),
        say(
            "admin.vm.property.Set+netvm work",
            refused_property(
                "'netvm' of work was not set: debian provides no network; allow it with "
                "'qvm-prefs debian provides_network True', or choose another VM"
            ),
            b"debian",
        ),
        say(
            "admin.vm.property.Set+template work",
            refused_property(
                "'template' of work was not set: work: an AppVM needs a template; name one with --template"
            ),
        ),
        say("admin.vm.property.Set+name work", exists("debian"), b"debian"),
        say("admin.vm.property.Set+name dom0", refused_property("'name' of dom0 is read-only"), b"x"),
        say(
            "admin.vm.property.Set+provides_network sys-net",
            in_use("sys-net provides the network of work; give that another netvm first"),
            b"False",
        ),
    ),
)

SETTINGS = (
    talk(
        "features",
        say("admin.vm.feature.List+ work", ok()),
        say("admin.vm.feature.Set+z work", ok(), b"50% ~"),
        say("admin.vm.feature.Set+a.B_c-1 work", ok()),
        say("admin.vm.feature.List+ work", ok("z\na.B_c-1\n")),
        say("admin.vm.feature.Get+z work", ok("50% ~")),
        say("admin.vm.feature.Get+a.B_c-1 work", ok()),
        say("admin.vm.feature.Remove+z work", ok()),
        say("admin.vm.feature.List+ work", ok("a.B_c-1\n")),
        say("admin.vm.feature.Set+os debian", ok(), b"Linux"),
        say("admin.vm.feature.CheckWithTemplate+os work", ok("Linux")),
        say("admin.vm.feature.Set+ipv6 sys-net", ok(), b"1"),
        say("admin.vm.feature.CheckWithNetvm+ipv6 work", ok("1")),
        say("admin.vm.feature.Set+gui dom0", ok(), b"yes"),
        say("admin.vm.feature.CheckWithAdminVM+gui work", ok("yes")),
        say("admin.vm.feature.CheckWithTemplateAndAdminVM+gui work", ok("yes")),
        say("admin.vm.feature.CheckWithTemplateAndAdminVM+os work", ok("Linux")),
    ),
    talk(
        "refused features",
        say("admin.vm.feature.Get+no%pe work", NO_FEATURE),
        say("admin.vm.feature.Remove+no%pe work", NO_FEATURE),
        say("admin.vm.feature.CheckWithTemplate+no%pe work", NO_FEATURE),
        say("admin.vm.feature.CheckWithNetvm+no%pe work", NO_FEATURE),
        say("admin.vm.feature.CheckWithAdminVM+no%pe work", NO_FEATURE),
        say("admin.vm.feature.CheckWithTemplateAndAdminVM+no%pe work", NO_FEATURE),
        say("admin.vm.feature.Get+ work", EXPECTED_ARGUMENT),
        say("admin.vm.feature.Get+a nobody", absent("nobody")),
        say("admin.vm.feature.Set+a:b work", FEATURE_NAME, b"1"),
        say("admin.vm.feature.Set+a work", FEATURE_VALUE, b"\n"),
        say("admin.vm.feature.Set+a work", protocol("the payload is not ASCII"), b"\xff"),
        say("admin.vm.feature.Set+preload-dispvm work", GUARDED, b"1"),
        say("admin.vm.feature.Remove+preload-dispvm work", GUARDED),
        say("admin.vm.feature.List+ work", ok()),
    ),
    talk(
        "tags",
        say("admin.vm.tag.List+ work", ok("audiovm-dom0\ncreated-by-dom0\nguivm-dom0\n")),
        say("admin.vm.tag.Set+Fast_1 work", ok()),
        say("admin.vm.tag.Set+Fast_1 work", ok()),
        say("admin.vm.tag.List+ work", ok("Fast_1\naudiovm-dom0\ncreated-by-dom0\nguivm-dom0\n")),
        say("admin.vm.tag.Get+Fast_1 work", ok("1")),
        say("admin.vm.tag.Remove+Fast_1 work", ok()),
        say("admin.vm.tag.Get+Fast_1 work", ok("0")),
    ),
    talk(
        "refused tags",
        say("admin.vm.tag.Set+a.b work", TAG_NAME),
        say("admin.vm.tag.Get+a.b work", TAG_NAME),
        say("admin.vm.tag.Get+ work", EXPECTED_ARGUMENT),
        say("admin.vm.tag.Set+a work", UNEXPECTED_PAYLOAD, b"1"),
        say(
            "admin.vm.tag.Remove+a%b work", error("QubesTagNotFoundError", "TagNotFoundError", "work has no tag 'a%%b'")
        ),
        say(
            "admin.vm.tag.Set+created-by-me work",
            denied("tag 'created-by-me' says who created a VM and cannot be changed by hand"),
        ),
        say(
            "admin.vm.tag.Remove+created-by-dom0 work",
            denied("tag 'created-by-dom0' says who created a VM and cannot be changed by hand"),
        ),
    ),
    talk(
        "labels",
        say("admin.label.List+ dom0", ok("red\norange\nyellow\ngreen\ngray\nblue\npurple\nblack\n")),
        say("admin.label.Get+red dom0", ok("0xcc0000")),
        say("admin.label.Get+orange dom0", ok("0xf57900")),
        say("admin.label.Get+yellow dom0", ok("0xedd400")),
        say("admin.label.Get+green dom0", ok("0x73d216")),
        say("admin.label.Get+gray dom0", ok("0x555555")),
        say("admin.label.Get+blue dom0", ok("0x3465a4")),
        say("admin.label.Get+purple dom0", ok("0x75507b")),
        say("admin.label.Get+black dom0", ok("0x000000")),
        say("admin.label.Index+red dom0", ok("1")),
        say("admin.label.Index+black dom0", ok("8")),
        say("admin.label.Create+cyan dom0", ok(), b"0x00cccc"),
        say("admin.label.Get+cyan dom0", ok("0x00cccc")),
        say("admin.label.Index+cyan dom0", ok("9")),
        say("admin.label.List+ dom0", ok("red\norange\nyellow\ngreen\ngray\nblue\npurple\nblack\ncyan\n")),
        say("admin.label.Remove+cyan dom0", ok()),
        say("admin.label.Get+cyan dom0", no_label("cyan")),
    ),
    talk(
        "refused labels",
        say("admin.label.List+ work", ONLY_DOM0),
        say("admin.label.Get+ dom0", EXPECTED_ARGUMENT),
        say("admin.label.Index+p%nk dom0", no_label("p%%nk")),
        say("admin.label.Remove+pink dom0", no_label("pink")),
        say("admin.label.Remove+red dom0", protocol("label 'red' is built in and cannot be removed")),
        say("admin.label.Create+pink dom0", EXPECTED_PAYLOAD),
        say("admin.label.Create+pink dom0", COLOR, b"pink"),
        say("admin.label.Create+p%nk dom0", LABEL_NAME, b"0x112233"),
        say(
            "admin.label.Create+red dom0",
            error("QubesValueError", "LabelExistsError", "a label called 'red' exists already; choose another name"),
            b"0x112233",
        ),
        say("admin.label.Create+cyan dom0", ok(), b"0x00cccc"),
        say("admin.vm.property.Set+label work", ok(), b"cyan"),
        say(
            "admin.label.Remove+cyan dom0",
            error(
                "QubesLabelInUseError",
                "LabelInUseError",
                "label 'cyan' is in use by work; give that another label first",
            ),
        ),
    ),
    talk(
        "notes",
        say("admin.vm.notes.Get+ work", ok()),
        say("admin.vm.notes.Set+ work", ok(), "ö 50%\tx\nline\0\x1b\u202e".encode()),
        say("admin.vm.notes.Get+ work", ok("ö 50%\tx\nline___")),
        say("admin.vm.notes.Set+ work", protocol("the notes are not UTF-8"), b"\xff"),
        say("admin.vm.notes.Get+ dom0", NOT_DOM0),
        say("admin.vm.notes.Set+ dom0", NOT_DOM0, b"x"),
        say("admin.vm.notes.Set+ work", ok()),
        say("admin.vm.notes.Get+ work", ok()),
    ),
)

COMING_AND_GOING = (
    talk(
        "creation of each class",
        say("admin.vm.Create.AppVM+debian dom0", ok(), b"name=a1 label=red"),
        say("admin.vm.Create.DispVM+dvm dom0", ok(), b"name=a2 label=red"),
        say("admin.vm.Create.RemoteVM+ dom0", ok(), b"name=a3 label=red"),
        say("admin.vm.Create.StandaloneVM+ dom0", ok(), b"name=a4 label=red"),
        say("admin.vm.Create.TemplateVM+ dom0", ok(), b"name=a5 label=red"),
        say("admin.vm.CreateInPool.AppVM+debian dom0", ok(), b"name=b1 label=red pool=vm-pool"),
        say("admin.vm.CreateInPool.DispVM+dvm dom0", ok(), b"name=b2 label=red pool:private=vm-pool"),
        say("admin.vm.CreateInPool.RemoteVM+ dom0", ok(), b"name=b3 label=red pool=vm-pool"),
        say("admin.vm.CreateInPool.StandaloneVM+ dom0", ok(),
            b"name=b4 label=red pool:root=vm-pool pool:private=vm-pool"),
        say("admin.vm.CreateInPool.TemplateVM+ dom0", ok(), b"name=b5 label=red pool:root=vm-pool"),
        say("admin.vm.List+ a1", ok("a1 class=AppVM state=Halted uuid=00000007-0000-4000-8000-000000000000\n")),
        say("admin.vm.List+ a2", ok("a2 class=DispVM state=Halted uuid=00000008-0000-4000-8000-000000000000\n")),
        say("admin.vm.List+ a3", ok("a3 class=RemoteVM state=Running uuid=00000009-0000-4000-8000-000000000000\n")),
        say("admin.vm.List+ a4", ok("a4 class=StandaloneVM state=Halted uuid=0000000a-0000-4000-8000-000000000000\n")),
        say("admin.vm.List+ b5", ok("b5 class=TemplateVM state=Halted uuid=00000010-0000-4000-8000-000000000000\n")),
        say("admin.vm.tag.List+ a3", ok("created-by-dom0\n")),
        say("admin.vm.property.Get+dispid a2", ok("default=False type=int 1")),
    ),
    talk(
        "creation by another VM",
        say("admin.vm.Create.AppVM+debian work name dom0", ok(), b"name=a label=red"),
        say("admin.vm.tag.List+ a", ok("audiovm-dom0\ncreated-by-work\nguivm-dom0\n")),
    ),
    talk(
        "refused creations",
        say("admin.vm.Create.AppVM+debian dom0", EXPECTED_PAYLOAD),
        say("admin.vm.Create.AppVM+debian work", ONLY_DOM0, b"name=a label=red"),
        say("admin.vm.Create.AdminVM+ dom0", protocol("no such method: 'admin.vm.Create.AdminVM'"), b"name=a"),
        say("admin.vm.Create.AppVM+debian dom0", exists("work"), b"name=work label=red"),
        say("admin.vm.Create.AppVM+debian dom0", no_label("p%%nk"), b"name=a label=p%nk"),
        say("admin.vm.Create.AppVM+debian dom0", protocol("the payload has a malformed word ''"), b"name=a  label=red"),
        say("admin.vm.Create.AppVM+debian dom0", protocol("the payload has a malformed word '50%%'"), b"50%"),
        say("admin.vm.Create.AppVM+debian dom0", protocol("the payload names no VM"), b"label=red"),
        say("admin.vm.Create.AppVM+debian dom0", protocol("the payload is not ASCII"), b"name=\xff"),
        say("admin.vm.Create.AppVM+nobody dom0", absent("nobody"), b"name=a label=red"),
        say("admin.vm.Create.AppVM+ dom0", refused("a: an AppVM needs a template; name one with --template"),
            b"name=a label=red"),
        say("admin.vm.Create.AppVM+work dom0", refused("a: work is of class AppVM and cannot be a template"),
            b"name=a label=red"),
        say("admin.vm.Create.TemplateVM+debian dom0", refused("a: a TemplateVM has no template"), b"name=a label=red"),
        say("admin.vm.Create.RemoteVM+debian dom0", refused("a: a RemoteVM has no template"), b"name=a label=red"),
        say(
            "admin.vm.Create.DispVM+work dom0",
            refused(
                "a: a DispVM starts from an AppVM that allows it, which work is not; allow it with "
                "'qvm-prefs work template_for_dispvms True', or choose another"
            ),
            b"name=a label=red",
        ),
        say(
            "admin.vm.Create.StandaloneVM+ dom0",
            refused(
                "'a-dm' cannot be the name of a VM: names that end in '-dm' belong to device models; "
                "choose another name"
            ),
            b"name=a-dm label=red",
        ),
        say("admin.vm.Create.AppVM+debian dom0", protocol("the payload has a malformed word 'pool=vm-pool'"),
            b"name=a label=red pool=vm-pool"),
        say("admin.vm.CreateInPool.AppVM+debian dom0",
            refused("there is no pool 'nowhere' (there: vm-pool, linux-kernel)"), b"name=a label=red pool=nowhere"),
        say("admin.vm.CreateInPool.AppVM+debian dom0", TWO_KINDS_OF_POOLS,
            b"name=a label=red pool=vm-pool pool:private=vm-pool"),
        say("admin.vm.List+ a", absent("a")),
    ),
    talk(
        "disposables",
        say("admin.vm.CreateDisposable+ dvm", ok("disp1")),
        say("admin.vm.CreateDisposable+ dvm", ok("uuid:00000008-0000-4000-8000-000000000000"), b"uuid"),
        say("admin.property.Set+default_dispvm dom0", ok(), b"dvm"),
        say("admin.vm.CreateDisposable+ dom0", ok("disp3")),
        say("admin.vm.CreateDisposable+ work name dom0", ok("disp4")),
        say("admin.vm.property.Get+auto_cleanup disp1", ok("default=False type=bool True")),
        say(
            "admin.vm.tag.List+ disp4", ok("audiovm-dom0\ncreated-by-work\ndisp-created-by-work\nguivm-dom0\n")
        ),
    ),
    talk(
        "refused disposables",
        say(
            "admin.vm.CreateDisposable+ dom0",
            refused(
                "dom0 has no default_dispvm to make disposables from; name an AppVM, or set one with "
                "'qvm-prefs dom0 default_dispvm'"
            ),
        ),
        say(
            "admin.vm.CreateDisposable+ work",
            refused(
                "disp1: a DispVM starts from an AppVM that allows it, which work is not; allow it with "
                "'qvm-prefs work template_for_dispvms True', or choose another"
            ),
        ),
        say("admin.vm.CreateDisposable+preload dvm",
            error("QubesVMError", "StateError", "dvm has 0 of 0 disposables ready; raise that with "
                  "'qvm-features dvm preload-dispvm-max'")),
        say("admin.vm.feature.Set+preload-dispvm-max dvm",
            refused("feature 'preload-dispvm-max' takes a number from 0 to 100, not '-1'"), b"-1"),
        say("admin.vm.feature.Set+preload-dispvm-completed dvm",
            denied("feature 'preload-dispvm-completed' is kept by the system and cannot be changed by hand"), b"1"),
        say("crannog.vm.Lease+ work",
            refused("work is no disposable that goes when its user has gone; make one with admin.vm.CreateDisposable")),
        say("admin.vm.CreateDisposable+x dvm", UNEXPECTED_ARGUMENT),
        say("admin.vm.CreateDisposable+ dvm", UNEXPECTED_PAYLOAD, b"x"),
        say("admin.vm.CreateDisposable+ nobody", absent("nobody")),
    ),
    talk(
        "clones",
        say("crannog.vm.Clone+ work", ok(), b"copy"),
        say("admin.vm.List+ copy", ok("copy class=AppVM state=Halted uuid=00000007-0000-4000-8000-000000000000\n")),
        say("crannog.vm.Clone+ work", exists("debian"), b"debian"),
        say("crannog.vm.Clone+ work", EXPECTED_PAYLOAD),
        say("crannog.vm.Clone+ dom0", NOT_DOM0, b"x"),
        say("crannog.vm.Clone+Odd%VM work", refused("VMs of class 'Odd%%VM' cannot be created"), b"x"),
    ),
    talk(
        "removal",
        say("admin.vm.Remove+ debian",
            in_use("debian is in use by work (template), dvm (template); change or remove that first")),
        say("admin.vm.Remove+ dom0", in_use("dom0 cannot be removed")),
        say("admin.vm.Remove+ nobody", absent("nobody")),
        say("admin.vm.Remove+x work", UNEXPECTED_ARGUMENT),
        say("admin.vm.Start+ work", ok()),
        say("admin.vm.Remove+ work", runs("be removed")),
        say("crannog.vm.Clone+ work", runs("be cloned"), b"x"),
        say("admin.vm.Kill+ work", ok()),
        say("admin.vm.Remove+ work", ok()),
        say("admin.vm.Remove+ work", absent("work")),
        say("admin.vm.Remove+ far", ok()),
    ),
)  # fmt: skip

POWER = (
    talk(
        "a life",
        say("admin.vm.property.Set+netvm work", ok(), b""),
        say("admin.vm.CurrentState+ dom0", ok("mem=0 mem_static_max=0 cputime=0 power_state=Running")),
        say("admin.vm.CurrentState+ work", ok("mem=0 mem_static_max=0 cputime=0 power_state=Halted")),
        say("admin.vm.Start+ work", ok()),
        say("admin.vm.List+ work", ok(WORK.format("Running"))),
        say(
            "admin.vm.CurrentState+ work",
            ok("mem=409600 mem_static_max=409600 cputime=5000 power_state=Running"),
        ),
        say("admin.vm.Console+ work", ok("/dev/pts/1")),
        say("crannog.vm.Screenshot+ work",
            error("QubesException", "DisplayError",
                  "work has no emulated screen; if it has windows, take those with --windows")),
        say("crannog.vm.Show+ work",
            error("QubesException", "DisplayError",
                  "work cannot be shown: it has neither an emulated screen nor a GUI agent; install the graphical "
                  "guest tools in it")),
        say("admin.vm.feature.Set+gui work", ok(), b"1"),
        say("crannog.vm.Show+ work", ok()),
        say("crannog.vm.Show+ work", ok(), b"DISPLAY=:7\nXAUTHORITY=/nowhere\n"),
        say("crannog.vm.Show+ work", protocol("unexpected payload"), b"LD_PRELOAD=/evil.so\n"),
        say("admin.vm.Pause+ work", ok()),
        say("admin.vm.List+ work", ok(WORK.format("Paused"))),
        say("admin.vm.Unpause+ work", ok()),
        say("admin.vm.Suspend+ work", ok()),
        say("admin.vm.List+ work", ok(WORK.format("Paused"))),
        say("admin.vm.Resume+ work", ok()),
        say("admin.vm.List+ work", ok(WORK.format("Running"))),
        say("admin.vm.Shutdown+wait work", ok()),
        say("admin.vm.List+ work", ok(WORK.format("Halted"))),
        say(
            "crannog.vm.Start+nowait work",
            ok(
                "<SECONDS>\tvolume ready\n<SECONDS>\tvolume ready\n<SECONDS>\tvolume ready\n"
                "<SECONDS>\tmemory reserved\n"
                "<SECONDS>\tRPC process started\n<SECONDS>\tdisplays ready\n"
                "<SECONDS>\tdomain created, paused\n<SECONDS>\trunning\n"
            ),
        ),
        say("admin.vm.Kill+ work", ok()),
        say("admin.vm.Start+ work", ok()),
        say("admin.vm.Shutdown+force+wait work", ok()),
        say("admin.vm.Start+ work", ok()),
        say("admin.vm.Shutdown+wait+force work", ok()),
    ),
    talk(
        "a screen",
        say("admin.vm.Create.StandaloneVM+ dom0", ok(), b"name=other label=red"),
        say("admin.vm.property.Set+virt_mode other", ok(), b"hvm"),
        say("admin.vm.Start+ other", ok()),
        say("crannog.vm.Screenshot+ other", ok("P6 1 1 255 000")),
        say("crannog.vm.Show+ other", ok()),
    ),
    talk(
        "a halted VM",
        say("admin.vm.Kill+ work", HALTED),
        say("admin.vm.Shutdown+ work", HALTED),
        say("admin.vm.Shutdown+wait work", HALTED),
        say("admin.vm.Resume+ work", HALTED),
        say("admin.vm.Pause+ work", not_running("work cannot be paused: it is Halted, not Running")),
        say("admin.vm.Suspend+ work", not_running("work cannot be suspended: it is Halted, not Running")),
        say("admin.vm.Unpause+ work",
            error("QubesVMNotPausedError", "VMNotPausedError", "work is not paused: it is Halted")),
        say("admin.vm.Console+ work",
            not_running("work has no console: it is not running; start it with 'qvm-start work'")),
        say("crannog.vm.Screenshot+ work",
            not_running("work has no screen: it is not running; start it with 'qvm-start work'")),
        say("crannog.vm.Show+ work",
            not_running("work cannot be shown: it is not running; start it with 'qvm-start work'")),
    ),
    talk(
        "a VM that runs",
        say("admin.vm.Start+ work", ok()),
        say("admin.vm.Start+ work",
            error("QubesVMNotHaltedError", "VMNotHaltedError", "work cannot be started: it is Running already")),
        say("admin.vm.Unpause+ work",
            error("QubesVMNotPausedError", "VMNotPausedError", "work is not paused: it is Running")),
        say("admin.vm.Resume+ work",
            error("QubesVMNotSuspendedError", "VMNotSuspendedError", "work is not suspended: it is Running")),
        say("admin.vm.Pause+ work", ok()),
        say("admin.vm.Pause+ work", not_running("work cannot be paused: it is Paused, not Running")),
        say(
            "admin.vm.Shutdown+ work",
            error(
                "QubesVMError",
                "StateError",
                "work cannot shut down while it is paused: let it go on with 'qvm-unpause work', or end it with "
                "'qvm-kill work'",
            ),
        ),
    ),
    talk(
        "a VM that others get their network from",
        say("admin.vm.Start+ sys-net", ok()),
        say("admin.vm.Start+ work", ok()),
        say(
            "admin.vm.Shutdown+ sys-net",
            in_use(
                "sys-net was not shut down: it is the netvm of work; shut that down first, or add --force"
            ),
        ),
        say("admin.vm.Shutdown+force+wait sys-net", ok()),
    ),
    talk(
        "what does not run here",
        say("admin.vm.Start+ dom0",
            error("QubesVMNotHaltedError", "VMNotHaltedError", "dom0 cannot be started: it runs always")),
        say("admin.vm.Start+ far",
            error("QubesVMNotHaltedError", "VMNotHaltedError", "far cannot be started: it runs always")),
        say("admin.vm.Shutdown+ dom0", elsewhere("dom0", "AdminVM")),
        say("admin.vm.Kill+ far", elsewhere("far", "RemoteVM")),
        say("admin.vm.Pause+ dom0", elsewhere("dom0", "AdminVM")),
        say("admin.vm.Unpause+ dom0", elsewhere("dom0", "AdminVM")),
        say("admin.vm.Suspend+ far", elsewhere("far", "RemoteVM")),
        say("admin.vm.Resume+ far", elsewhere("far", "RemoteVM")),
        say("admin.vm.Console+ dom0", elsewhere("dom0", "AdminVM")),
    ),
    talk(
        "malformed calls about power",
        say("admin.vm.Shutdown+odd work", UNEXPECTED_ARGUMENT),
        say("admin.vm.Shutdown+force+ work", UNEXPECTED_ARGUMENT),
        say("admin.vm.Shutdown+ work", UNEXPECTED_PAYLOAD, b"x"),
        say("admin.vm.Start+x work", UNEXPECTED_ARGUMENT),
        say("admin.vm.Start+ work", UNEXPECTED_PAYLOAD, b"x"),
        say("admin.vm.Kill+ nobody", absent("nobody")),
        say("crannog.vm.Start+odd work", protocol("the argument of crannog.vm.Start is malformed")),
    ),
)  # fmt: skip

TALKS = (*LISTS, *PROPERTIES, *SETTINGS, *COMING_AND_GOING, *POWER)


@pytest.mark.parametrize("spoken", TALKS, ids=str)
async def test_exact_replies(spoken: Talk) -> None:
    await check(spoken)
