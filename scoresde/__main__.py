"""`python -m scoresde`, the same as `scoresde`."""

import sys

from .cli import main

sys.exit(main())
