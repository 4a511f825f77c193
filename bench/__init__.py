"""Speed and memory, each beside a peer and a limit of the machine: `python -m bench --help`."""
