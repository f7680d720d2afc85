"""`python -m swift_sd` is the command `swift-sd`."""

import sys

from swift_sd.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
