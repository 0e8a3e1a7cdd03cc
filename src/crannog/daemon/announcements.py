"""What guests' tools announce about themselves is kept with the VM that they are in (design.md, B13)."""

import asyncio
import logging
from collections.abc import Callable
from weakref import WeakKeyDictionary

from crannog.core import events
from crannog.core.announcement import PREFIX as TOOLS
from crannog.core.announcement import AgentState, AgentStatus, Announcement, QemuAgent, parse_announcement
from crannog.core.features_request import PREFIX, changes, parse_request
from crannog.core.qga import FEATURE
from crannog.core.registry import Registry
from crannog.core.vms import LocalVM
from crannog.daemon.world import World
from crannog.editing.editor import Editor
from crannog.errors import CrannogError, ProtocolError, RpcError, VMNotRunningError
from crannog.rpc.allowance import Allowance

log = logging.getLogger(__name__)

CHANGES_PER_SECOND, CHANGES_BURST = 0.5, 10
"""What a guest's tools may have changed: each change is a save of the store, on which all VMs wait."""


class Announcements:
    """Listens to the agents."""

    def __init__(
        self,
        world: World,
        registry: Registry,
        editor: Editor,
        allow: Callable[[], Allowance] = lambda: Allowance(CHANGES_PER_SECOND, CHANGES_BURST),
    ) -> None:
        """`allow` makes what counts one VM's changes."""
        self._agents = world.agents
        self._registry = registry
        self._editor = editor
        self._allow = allow
        self._allowances: WeakKeyDictionary[LocalVM, Allowance] = WeakKeyDictionary()
        self._later: dict[str, asyncio.TimerHandle] = {}
        world.agents.listen(self._note_agent)

    async def take(self, vm: LocalVM) -> None:
        """Keep what the VM's tools say in its guest DB that they are (qubes.NotifyTools).

        Raises VMNotRunningError when no agent of ours is connected, ProtocolError for nonsense, which changes nothing,
        and RpcError when the VM's guest DB cannot be read, or has said something else too often.
        """
        status = self._agents.status(vm.uuid)
        if status is None or status.agent is not AgentState.READY:
            raise VMNotRunningError(f"the tools in {vm.name} cannot be heard: its agent is not connected")
        untrusted_entries = await self._agents.read_entries(vm.uuid, TOOLS.decode())
        try:
            announced = parse_announcement({path.encode(): value for path, value in untrusted_entries.items()})
        except ProtocolError as error:
            log.warning("%s: what its tools announced is refused, nothing is changed: %s", vm.name, error)
            raise
        self._apply(vm, announced)

    async def take_features(self, vm: LocalVM) -> None:
        """Keep the features that the VM's tools ask for in its guest DB (qubes.FeaturesRequest).

        Those of a VM that starts from a template follow from that one, so that it is not listened to. Raises
        ProtocolError for nonsense, which changes nothing; RpcError when the VM's guest DB cannot be read, or has said
        something else too often.
        """
        wanted = parse_request(await self._agents.read_entries(vm.uuid, PREFIX))
        self._editor.tell(events.plain(vm.name, "features-request"))
        if vm.template:
            log.warning("%s: the features that its tools ask for are its template's to say", vm.name)
            return
        changed = changes(vm.features, wanted)
        if changed:
            self._count_change(vm)
        new = {name: value for name, value in changed.items() if value is not None}
        if new:
            self._editor.set_features(vm, new)
        for name in [name for name, value in changed.items() if value is None]:
            self._editor.remove_feature(vm, name)
        if changed:
            log.info("%s: its tools asked for %s", vm.name, ", ".join(sorted(changed)))

    def _count_change(self, vm: LocalVM) -> None:
        """Note that something of a VM is changed now; raises RpcError when that is too often."""
        if not self._allowances.setdefault(vm, self._allow()).take():
            raise RpcError(f"the tools in {vm.name} say something else too often; wait a few seconds")

    def _note_agent(self, vm_uuid: str, status: AgentStatus) -> None:
        """Keep what an agent says by itself; what is said too often is looked at again later."""
        try:
            self._keep_status(vm_uuid, status)
        except RpcError as error:
            if vm_uuid not in self._later:
                log.warning("%s", error)
                loop = asyncio.get_running_loop()
                self._later[vm_uuid] = loop.call_later(1 / CHANGES_PER_SECOND, self._look_again, vm_uuid)

    def _look_again(self, vm_uuid: str) -> None:
        del self._later[vm_uuid]
        status = self._agents.status(vm_uuid)
        if status:
            self._note_agent(vm_uuid, status)

    def _keep_status(self, vm_uuid: str, status: AgentStatus) -> None:
        vm = self._registry.find_uuid(vm_uuid)
        if not isinstance(vm, LocalVM):
            return
        try:
            if status.announced:  # by its agent, or in XenStore without one
                self._apply(vm, status.announced)
            elif status.qemu:
                self._apply_fallback(vm, status.qemu)
        except RpcError:
            raise
        except CrannogError as error:
            log.error("%s: its announcement was not kept: %s", vm.name, error)

    def _apply(self, vm: LocalVM, announced: Announcement) -> None:
        """Keep what the guest's tools say, where it differs from what is known; templates are not touched."""
        news = {"qrexec": _flag(announced.qrexec), "gui": _flag(announced.gui), "os": announced.os}
        changed = {name: value for name, value in news.items() if vm.feature(name) != value}
        user = announced.default_user
        has_new_user = bool(user) and vm.get("default_user") != user
        has_fallback = FEATURE in vm.features
        if changed or has_new_user or has_fallback:
            self._count_change(vm)
        if has_fallback:
            self._editor.remove_feature(vm, FEATURE)
        if changed:
            self._editor.set_features(vm, changed)
        if has_new_user:
            self._editor.set_property(vm, "default_user", user)
        if changed or has_new_user:
            log.info("%s: its tools announced %s", vm.name, announced)

    def _apply_fallback(self, vm: LocalVM, qemu: QemuAgent) -> None:
        """Keep that QEMU's guest agent runs the VM's commands, and what it says of its system."""
        news = {"os": qemu.os, "os-distribution": qemu.distribution, "os-version": qemu.release}
        changed = {name: value for name, value in news.items() if value and vm.feature(name) != value}
        if vm.features.get(FEATURE) != "1":
            changed[FEATURE] = "1"
        if changed:
            self._count_change(vm)
            self._editor.set_features(vm, changed)
            log.info("%s: its commands are run by QEMU's guest agent: %s", vm.name, qemu)


def _flag(value: bool) -> str:
    return "1" if value else ""
