"""quantity × price → amount. Pure: no I/O, no clock, no float."""
