"""``python -m qwf`` is the command ``qwf``."""

import sys

from .cli import main

sys.exit(main())
