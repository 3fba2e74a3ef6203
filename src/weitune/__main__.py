"""``python -m weitune`` is the command ``weitune``."""

import sys

from weitune.cli import main

sys.exit(main())
