"""Completion of words that contain colons, equals signs and commas, which click does not expect.

bash splits a word at such characters before it asks, and replaces only the last part. After a word
that ends with such a character more must follow, so bash and zsh must not add a space. fish does
this by itself, but click's script for it cuts words at commas.
"""

from __future__ import annotations

import os
import re
from typing import Any

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)


class _Bash(BashComplete):
    source_template = """\
# shellcheck shell=bash
%(complete_func)s() {
    local kind value
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            part) compopt -o nospace ;;&
            part | plain) COMPREPLY+=("$(printf %%q "$value")") ;;
        esac
    done < <(COMP_LINE=${COMP_LINE:0:COMP_POINT} COMP_WORDBREAKS=$COMP_WORDBREAKS \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Split the line up to the cursor into whole words and the one to complete."""
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)
        incomplete = words.pop() if words and not line[-1].isspace() else ""
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """Return the text for the part that bash replaces, and its kind: "part" if more follows."""
        if item.type != "plain":
            return f"{item.type},"
        _, incomplete = self.get_completion_args()
        if incomplete.startswith("-"):
            incomplete = incomplete.partition("=")[2]
        breaks = [mark for mark in ":=" if mark in os.environ.get("COMP_WORDBREAKS", ":=")]
        kept = max([0, *(incomplete.rfind(mark) + 1 for mark in breaks)])
        kind = "part" if re.search("[:=/]$", item.value) else "plain"
        return f"{kind},{item.value[kept:]}"


class _Zsh(ZshComplete):
    source_template = ZshComplete.source_template.replace(
        "compadd -U -V unsorted -a completions",
        "compadd -U -S '' -V unsorted -- ${(M)completions:#*[:=/]}\n"
        "        compadd -U -V unsorted -- ${completions:#*[:=/]}",
    )


class _Fish(FishComplete):
    #: The words have commas, too: only the first one separates the kind from the word.
    source_template = FishComplete.source_template.replace(
        'string split "," $completion', 'string split --max 1 "," $completion'
    )


add_completion_class(_Bash)
add_completion_class(_Fish)
add_completion_class(_Zsh)
