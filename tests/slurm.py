"""A Slurm that runs jobs on this machine: `sbatch`, `squeue` and `scontrol` for the front of PATH.

An array's tasks run one after the other behind the command's back, as a scheduler would run them, after DELAY seconds.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

SBATCH = """#!{python}
import json, os, re, subprocess, sys
from pathlib import Path

state = Path({state!r})
script = Path(sys.argv[-1]).read_text()
job = str(100 + len(list(state.glob("job-*.json"))))
options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", script, re.MULTILINE))
(state / f"job-{{job}}.json").write_text(json.dumps({{"options": options, "arguments": sys.argv[1:-1]}}))
(state / f"job-{{job}}.sh").write_text(script)
if options["partition"] == "none":
    sys.exit("sbatch: error: invalid partition specified: none")
first, last = map(int, re.match(r"(\\d+)-(\\d+)", options["array"]).groups())
offset = next((a.split("RUN_OFFSET=")[1] for a in sys.argv if "RUN_OFFSET=" in a), "0")
(state / f"running-{{job}}").write_text("")
lines = [f"sleep {{os.environ.get('SLURM_DELAY', '0')}}"]
for task in range(first, last + 1):
    lines.append(f"SLURM_ARRAY_TASK_ID={{task}} bash {{state}}/job-{{job}}.sh")
lines.append(f"rm {{state}}/running-{{job}}")
environment = os.environ | {{"SLURM_JOB_ID": job, "SLURM_NODELIST": "here", "RUN_OFFSET": offset}}
log = open(state / f"job-{{job}}.log", "w")
subprocess.Popen(["bash", "-c", "; ".join(lines)], env=environment, stdout=log, stderr=log, start_new_session=True)
print("Submitted batch job", job)
"""

SQUEUE = """#!{python}
import sys
from pathlib import Path

wanted = sys.argv[sys.argv.index("--jobs") + 1].split(",")
print(*(job for job in wanted if (Path({state!r}) / f"running-{{job}}").exists()), sep="\\n")
"""

SCONTROL = """#!/bin/sh
echo "$3"
"""


def install(directory: Path) -> dict[str, str]:
    """Put the commands into `directory`; PATH with them in front."""
    state = directory / "state"
    state.mkdir(parents=True)
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scontrol", SCONTROL)):
        path = directory / name
        path.write_text(text.format(python=sys.executable, state=str(state)))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}
