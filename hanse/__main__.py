"""`python -m hanse` is the `hanse` command."""

import sys

from hanse.cli import main

sys.exit(main())
