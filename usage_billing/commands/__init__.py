"""Groups of commands, one module a noun; cli.py puts them together."""
