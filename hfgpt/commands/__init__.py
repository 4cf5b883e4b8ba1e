"""What each command does: a module a script, which `hfgpt <command>` and `scripts/<command>.py` call."""
