"""``python -m pyro_vae`` is ``pyro-vae``."""

import os
import sys

if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]  # the current folder: nothing is imported from there, see `pyro_vae.cli.main`

from pyro_vae.cli import main

raise SystemExit(main())
