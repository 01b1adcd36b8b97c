"""The corpus steps on many machines: as blocks of datatrove, run by its local, Ray and Slurm executors.

Nothing here is imported before a recipe names an engine (`machine.engine`). The steps themselves know little of it:
what they work through lies in stretches, each a function of the input (`steps.Input`), and an engine deals the
stretches to tasks. A task leaves the parts of a stretch in a directory of their own; the process that the user started
waits for all tasks and joins the parts in order. So the bytes are those of one process, whoever wrote them.

All machines see one file system, where the run's directory, its input and the Python environment are.
"""

import importlib.util

from mini_chat.errors import UserError

INSTALL = "pip install 'mini-chat[cluster]'"

if importlib.util.find_spec("datatrove") is None:
    raise UserError(f"machine.engine: datatrove is not installed; run: {INSTALL}")
