"""The `rsr` command: one file a command, none of which is imported before it is asked for."""
