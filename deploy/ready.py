"""/readyz of a service in the same container → exit code: what a container's health check runs."""

import sys
import urllib.request

if __name__ == "__main__":
    with urllib.request.urlopen(f"http://127.0.0.1:{int(sys.argv[1])}/readyz", timeout=4) as answer:
        sys.exit(0 if answer.status == 200 else 1)
