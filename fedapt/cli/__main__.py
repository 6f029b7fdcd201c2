"""`python -m fedapt.cli`."""

import sys

from fedapt.cli.app import main

sys.exit(main())
