"""crannog: what is not about one VM: the host, templates, kernels, the store, the daemon."""

import sys
from importlib import import_module

from crannog import __version__
from crannog.cli.tool import complain, say
from crannog.errors import UsageError

COMMANDS = {
    "doctor": ("doctor:main", "say what this host can do and what is missing"),
    "template": ("template:main", "build templates from the distribution's packages"),
    "kernel": ("kernel:main", "list, add and remove the kernels that VMs get from the host"),
    "store": ("store:main", "check the store, go back to a former version, bring a file of Qubes over"),
    "storage": ("storage:main", "say what is wrong in the pools, and delete what nobody needs"),
    "policy": ("policy:main", "say who may call what, and why; ask the user about calls"),
    "events": ("events:main", "print what happens, as it happens"),
    "show": ("show:main_show", "open the displays of a VM that were closed"),
    "screenshot": ("show:main_screenshot", "save the picture of a VM's emulated screen"),
    "clipboard": ("clipboard:main", "bring text from the clipboard of one VM into that of another"),
    "daemon": ("housekeeping:main_daemon", "show or stop the daemon"),
    "services": ("services:main", "offer the Admin API as qrexec services"),
    "complete": ("completion:main", "say what could be typed next, for shells"),
}
"""Module below crannog.cli and the function in it that runs the command; loaded when it is called."""


def print_help() -> None:
    """List the commands."""
    say("usage: crannog COMMAND ...\n\ncommands:")
    for name, (_place, summary) in COMMANDS.items():
        say(f"  {name:12} {summary}")
    say("\nVMs have tools of their own: qvm-create, qvm-clone, qvm-remove, qvm-ls, qvm-check, qvm-prefs, qvm-features,")
    say("qvm-service, qvm-tags, qvm-notes, qvm-start, qvm-shutdown, qvm-kill, qvm-pause, qvm-unpause, qvm-run,")
    say("qvm-console, qvm-volume, qvm-device, qvm-firewall; pools have qvm-pool.")
    say("Global properties are shown and changed by qubes-prefs.")
    say("Each tells more with --help.")


def main() -> int:
    """Run crannog."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print_help()
        return 0 if arguments else UsageError.exit_code
    if arguments[0] == "--version":
        say(f"crannog {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        complain("crannog", f"there is no command '{arguments[0]}'; the commands are {', '.join(COMMANDS)}")
        return UsageError.exit_code
    module, function = COMMANDS[arguments[0]][0].split(":")
    code: int = getattr(import_module(f"crannog.cli.{module}"), function)(arguments[1:])
    return code
