"""The scripts by which shells ask `crannog complete`."""

from crannog.cli.commands import COMMANDS
from crannog.errors import UsageError

_BASH = """# Completion for bash (bash-completion or sourced by hand).
_crannog() {
    local IFS=$'\\n'
    local words=("${COMP_WORDS[@]:0:COMP_CWORD}" "${COMP_WORDS[COMP_CWORD]}")
    words[0]=${words[0]##*/}
    COMPREPLY=($(crannog complete -- "${words[@]}" 2>/dev/null))
}
complete -o default -F _crannog PROGRAMS
"""
_ZSH = """#compdef PROGRAMS
_crannog() {
    local -a found line
    line=("${(@)words[1,CURRENT]}")
    line[1]=${line[1]:t}
    found=(${(f)"$(crannog complete -- "${line[@]}" 2>/dev/null)"})
    if (( $#found )); then compadd -a found; else _files; fi
}
_crannog "$@"
"""
_FISH = """function __crannog_complete
    set -l line (commandline -opc) (commandline -ct)
    set line[1] (basename $line[1])
    crannog complete -- $line 2>/dev/null
end
for program in PROGRAMS
    complete -c $program -a '(__crannog_complete)'
end
"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def render_script(shell: str) -> str:
    """Return the script for a shell; raises UsageError for one that is not known."""
    if shell not in SCRIPTS:
        raise UsageError(f"there is no script for '{shell}'; the shells are {', '.join(SCRIPTS)}")
    programs = dict.fromkeys(name.split(" ")[0] for name in COMMANDS)
    return SCRIPTS[shell].replace("PROGRAMS", " ".join(programs))
