"""What tests of the kernels need."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

from mini_chat import native
from mini_chat.native import build

_CPUINFO = Path("/proc/cpuinfo")
PROCESSOR = _CPUINFO.read_text(encoding="utf-8") if _CPUINFO.exists() else ""
HAS_COMPILER = any(map(shutil.which, build.COMPILERS))
SUITED = HAS_COMPILER and platform.machine() in native.PROCESSORS and " avx2 " in PROCESSOR

needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")
# Where they ought to compile and do not, tests fail.
needs_kernels = pytest.mark.skipif(not SUITED, reason="kernels need a C++ compiler and AVX2")
