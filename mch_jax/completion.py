"""Tab completion of the command `mch` in bash: names of commands, flags and configs."""

import importlib
import string
from collections.abc import Mapping

from absl import flags

from mch_jax import config_files

# Bash splits --config=name into three words, of which a trailing = is one. Everything that the
# function does not know, such as the value of --images, is completed as a path. The bash of macOS
# has no compopt and no negative subscripts.
_SCRIPT = string.Template("""\
_mch() {
  local word="$${COMP_WORDS[COMP_CWORD]}" words=""
  local flag="$${COMP_WORDS[COMP_CWORD > 1 ? COMP_CWORD - 2 : 0]}"
  if [ "$$word" = "=" ]; then
    word="" flag="$${COMP_WORDS[COMP_CWORD - 1]}"
  fi
  if [ "$$COMP_CWORD" -eq 1 ]; then
    words="$commands"
  elif [ "$$flag" = --config ]; then
    words="$configs"
  elif [[ "$$word" == -* ]]; then
    case "$${COMP_WORDS[1]}" in
$cases
    esac
  fi
  COMPREPLY=($$(compgen -W "$$words" -- "$$word"))
  if [[ "$${COMPREPLY[0]}" == *= ]]; then
    compopt -o nospace 2>/dev/null
  fi
}
complete -o default -F _mch mch
""")


def bash(commands: Mapping[str, str]) -> str:
    """Returns a script that makes bash complete the words after `mch`.

    Args:
      commands: The module of each command by the command's name. Each has `define_flags`.
    """
    cases = []
    for name, module in commands.items():
        values = flags.FlagValues()
        importlib.import_module(module).define_flags(values)
        words = " ".join(["--help", *(word for flag in values for word in _words(values[flag]))])
        cases.append(f'      {name}) words="{words}" ;;')
    return _SCRIPT.substitute(
        commands=" ".join(commands), configs=" ".join(config_files.names()), cases="\n".join(cases)
    )


def _words(flag: flags.Flag) -> list[str]:
    """Returns the words that set a flag; a flag that takes a value ends with =."""
    return [f"--{flag.name}", f"--no{flag.name}"] if flag.boolean else [f"--{flag.name}="]
