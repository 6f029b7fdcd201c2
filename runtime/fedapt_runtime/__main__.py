"""`python -m fedapt_runtime`."""

import sys

from fedapt_runtime.cli import main

sys.exit(main())
