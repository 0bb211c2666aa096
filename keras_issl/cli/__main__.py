"""`python -m keras_issl.cli`."""

import sys

from keras_issl.cli import main

sys.exit(main())
