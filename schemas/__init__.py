"""What things are: models, limits, names and formats. Opens no socket and reads no clock."""
