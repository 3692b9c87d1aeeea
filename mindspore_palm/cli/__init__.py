"""The command ``palm``: ``palm.py`` has the table of commands, and each command is a module with its options."""
