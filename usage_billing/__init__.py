"""The console command, what it composes, and the producers' client."""
