"""`python main.py STAGE ...` is the same as `mini-chat STAGE ...`."""

import sys

from mini_chat.cli import main

if __name__ == "__main__":
    sys.exit(main())
