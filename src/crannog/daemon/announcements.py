"""What guests' tools announce about themselves is kept with the VM that they are in (design.md, B13)."""

import logging

from crannog.core import events
from crannog.core.announcement import AgentState, AgentStatus, Announcement
from crannog.core.features_request import PREFIX, changes, parse_request
from crannog.core.registry import Registry
from crannog.core.vms import LocalVM
from crannog.daemon.world import World
from crannog.editing.editor import Editor
from crannog.errors import CrannogError, VMNotRunningError

log = logging.getLogger(__name__)


class Announcements:
    """Listens to the agents."""

    def __init__(self, world: World, registry: Registry, editor: Editor) -> None:
        self._agents = world.agents
        self._registry = registry
        self._editor = editor
        world.agents.listen(self._note_agent)

    def take(self, vm: LocalVM) -> None:
        """Keep what the VM's agent announced last; raises VMNotRunningError when none is connected."""
        status = self._agents.status(vm.uuid)
        if status is None or status.agent is not AgentState.READY or not status.announced:
            raise VMNotRunningError(f"the tools in {vm.name} cannot be heard: its agent is not connected")
        self._apply(vm, status.announced)

    async def take_features(self, vm: LocalVM) -> None:
        """Keep the features that the VM's tools ask for in its guest DB (qubes.FeaturesRequest).

        Those of a VM that starts from a template follow from that one, so that it is not listened to. Raises
        ProtocolError for nonsense, which changes nothing; RpcError when the VM's guest DB cannot be read.
        """
        wanted = parse_request(await self._agents.read_entries(vm.uuid, PREFIX))
        self._editor.tell(events.plain(vm.name, "features-request"))
        if vm.template:
            log.warning("%s: the features that its tools ask for are its template's to say", vm.name)
            return
        changed = changes(vm.features, wanted)
        new = {name: value for name, value in changed.items() if value is not None}
        if new:
            self._editor.set_features(vm, new)
        for name in [name for name, value in changed.items() if value is None]:
            self._editor.remove_feature(vm, name)
        if changed:
            log.info("%s: its tools asked for %s", vm.name, ", ".join(sorted(changed)))

    def _note_agent(self, vm_uuid: str, status: AgentStatus) -> None:
        vm = self._registry.find_uuid(vm_uuid)
        if isinstance(vm, LocalVM) and status.agent is AgentState.READY and status.announced:
            try:
                self._apply(vm, status.announced)
            except CrannogError as error:
                log.error("%s: its announcement was not kept: %s", vm.name, error)

    def _apply(self, vm: LocalVM, announced: Announcement) -> None:
        """Keep what the guest's tools say, where it differs from what is known; templates are not touched."""
        news = {"qrexec": _flag(announced.qrexec), "gui": _flag(announced.gui), "os": announced.os}
        changed = {name: value for name, value in news.items() if vm.feature(name) != value}
        user = announced.default_user
        has_new_user = bool(user) and vm.get("default_user") != user
        if changed:
            self._editor.set_features(vm, changed)
        if has_new_user:
            self._editor.set_property(vm, "default_user", user)
        if changed or has_new_user:
            log.info("%s: its tools announced %s", vm.name, announced)


def _flag(value: bool) -> str:
    return "1" if value else ""
