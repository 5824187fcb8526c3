"""`python -m restack` is the `restack` command."""

import sys

from restack.cli import main

sys.exit(main())
