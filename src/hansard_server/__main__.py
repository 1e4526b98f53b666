"""`python -m hansard_server` is `hansard`."""

from hansard_server.cli import main

if __name__ == "__main__":
    main()
