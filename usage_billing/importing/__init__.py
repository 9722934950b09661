"""A table file → usage events: read row by row, checked whole, then sent so that every row counts once."""
