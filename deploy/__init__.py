"""Ways to run the project: compose.yaml and Dockerfile for Docker, `local` for a machine without it."""
